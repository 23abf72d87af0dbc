"""What a sweep takes, before it starts: base and sources once, every candidate on few and on all prompts, the winner on test."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from mcp_server.errors import BadInput
from mcp_server.formats.lineage import Lineage
from mcp_server.formats.own_data import Split
from mcp_server.schemas.estimate import Seconds
from mcp_server.schemas.job import EvaluateRequest, SweepRequest
from mcp_server.steps.estimate.costs import costs
from mcp_server.steps.estimate.minutes import UNSURE, Rate, asking_seconds, between, parameters_of, prompts_of, slowness, start_of
from mcp_server.steps.evaluate.held import BITS, few_bits, held_for
from mcp_server.steps.evaluate.known import known_prompts
from mcp_server.steps.evaluate.line_up import models_of, suites_of

FIRST_LOOK: Final = 8
"""Prompts a suite for the first look of a search within minutes; fewer say nothing."""
LIMITS: Final = (200, 100, 64, 48, 32, 24, 16, FIRST_LOOK)
"""Prompts a suite that are tried where the request names none, most first."""
FIXED_SHARE: Final = 0.5
"""Of the minutes, the most that goes to the sources and the winner's test; the rest is for candidates."""


@dataclass(frozen=True, slots=True)
class SweepCost:
    """Seconds. `first`: a candidate's merge and first look, `whole`: the same with all its prompts. `answering`: of `sources`,
    what is not the start."""

    sources: float
    answering: float
    first: float
    whole: float
    test: float
    sure: bool

    @property
    def least(self) -> float:
        """With a single candidate."""
        return self.sources + self.whole + self.test

    @property
    def surely(self) -> float:
        """What a single candidate takes at the least, as far as it is known: minutes below that are refused."""
        return self.least if self.sure else self.least / UNSURE


def cost_of(request: SweepRequest, lineage: Lineage, limit: int | None) -> SweepCost | None:
    """With `limit` prompts a suite. None where a size or a number of prompts is not known. Raises what opening a model raises."""
    refs = models_of(lineage, out=None, base=None, sources=None, against={})
    wanted = EvaluateRequest(suites=request.suites, data=request.data, suite_folders=request.suite_folders)
    suites = suites_of(wanted, refs)
    sizes = {label: parameters_of(ref) for label, ref in refs.items()}
    winner, held = {"merged": max(sizes.values())}, held_for(request.dtype, refs)

    def asked(models: Mapping[str, int], split: Split, prompts: int | None) -> Rate | None:
        known = known_prompts(refs, held, suites, split)
        return asking_seconds(models, suites, {s.name: prompts_of(s, split, prompts) for s in suites}, request.dtype, known)

    few = min(look for look in (FIRST_LOOK if request.minutes else request.quick_limit, limit) if look is not None)
    sources, first, whole = asked(sizes, "dev", limit), asked(winner, "dev", few), asked(winner, "dev", limit)
    test = asked(sizes | winner, "test", limit)
    if sources is None or first is None or whole is None or test is None:
        return None
    constants, billions, start = costs(), winner["merged"] / 1e9, start_of()
    merge = billions * constants.stream.ns_per_element * slowness() * len(refs) + constants.stream.start_seconds
    in_memory = held not in BITS  # then the model is loaded once for all candidates
    loading = billions * constants.evidence.load_seconds_per_billion if in_memory else 0.0
    return SweepCost(
        sources=start.seconds + sources.seconds,
        answering=sources.seconds,
        first=merge + first.seconds - loading,
        whole=merge + whole.seconds - loading,
        test=merge + (start.seconds + test.seconds if request.test else 0.0),
        sure=whole.here,
    )


def on_disk(request: SweepRequest, lineage: Lineage) -> str:
    """Said before a sweep starts whose candidates are not made in memory: that, and why. Empty where they are."""
    said = few_bits(request, models_of(lineage, out=None, base=None, sources=None, against={}))
    return (
        f"{said}; so every candidate is merged to disk, quantised while it is read, and removed once it is measured"
        if said
        else ""
    )


def takes(request: SweepRequest, lineage: Lineage, candidates: int) -> Seconds | None:
    """From start to end. With `minutes` it ends by itself."""
    if request.minutes is not None:
        return Seconds(low=round(30 * request.minutes, 1), high=round(60 * request.minutes, 1))
    if (cost := cost_of(request, lineage, request.limit)) is None:
        return None
    fixed = cost.sources + cost.test
    low = between(fixed + candidates * cost.first + cost.whole, sure=cost.sure).low
    high = between(fixed + candidates * (cost.first + cost.whole), sure=cost.sure).high
    return Seconds(low=low, high=high)


def within(request: SweepRequest, lineage: Lineage) -> SweepRequest:
    """The request with a `limit` of prompts that leaves time for candidates; one that is given is kept.

    Raises `BadInput` with the figure when the minutes are too few for a single candidate.
    """
    if request.minutes is None:
        return request
    budget = 60 * request.minutes
    if request.limit is not None:
        if (cost := cost_of(request, lineage, request.limit)) is not None and cost.surely > budget:
            raise _too_few(request, cost, request.limit)
        return request
    for limit in LIMITS:
        cost = cost_of(request, lineage, limit)
        if cost is None:
            return request.model_copy(update={"limit": limit})
        if cost.surely <= budget and (limit == FIRST_LOOK or cost.sources + cost.test <= FIXED_SHARE * budget):
            return request.model_copy(update={"limit": limit})
    assert cost is not None
    raise _too_few(request, cost, FIRST_LOOK)


def _too_few(request: SweepRequest, cost: SweepCost, limit: int) -> BadInput:
    need = max(cost.surely / 60, (request.minutes or 0) + 0.1)
    return BadInput(
        f"{request.minutes:g} minutes are too few for one candidate: base, sources, its merge and the winner's test on "
        f"{limit} prompts a suite take {'about' if cost.sure else 'at least'} {need:.1f} minutes here",
        f"give --minutes {math.ceil(need * 1.5)} or more, fewer suites, or a smaller model",
    )
