"""Which recipes a sweep tries. A candidate is a plan with settings, exactly those that `render --set` takes."""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from mcp_server.catalog import load
from mcp_server.errors import BadInput
from mcp_server.schemas.base import Frozen
from mcp_server.schemas.plan import Plan
from mcp_server.steps.render import parse_overrides, render

LAMBDAS: Final = ("0.3", "0.5", "0.7", "0.85", "1.0")
MAX_CANDIDATES: Final = 200


class Candidate(Frozen):
    name: str
    settings: dict[str, str]
    recipe: str


def from_grid(plan: Plan, grid: Iterable[str], relative_to: Path | None = None, tries: Iterable[str] = ()) -> list[Candidate]:
    """Every combination of `KEY=V1,V2,…` axes, then each of `tries`: single candidates as `KEY=VALUE KEY=VALUE`.

    Commas inside brackets belong to a value. Without axes and tries it is the shortlist. Raises `BadInput`.
    """
    single = [parse_overrides(shlex.split(text)) for text in tries]
    axes: list[list[tuple[str, str]]] = []
    for text in grid:
        key, sign, values = text.partition("=")
        found = [value.strip() for value in _split(values)]
        if not sign or not key.strip() or not all(found):
            raise BadInput(f"{text!r} is not KEY=V1,V2,…", "for example --grid parameters.lambda=0.5,0.7,1")
        axes.append([(key.strip(), value) for value in found])
    if not axes:
        return _render(plan, single, relative_to) if single else shortlist(plan, relative_to)
    count = 1
    for axis in axes:
        count *= len(axis)
    if count > MAX_CANDIDATES:
        raise BadInput(f"the grid has {count} combinations, {MAX_CANDIDATES} is the most", "drop values; choose by halves")
    return _render(plan, [dict(pairs) for pairs in itertools.product(*axes)] + single, relative_to)


def shortlist(plan: Plan, relative_to: Path | None = None) -> list[Candidate]:
    """The plan itself, its runner-ups, and λ from 0.3 to 1 at full weights for the methods that take one."""
    wanted: list[dict[str, str]] = [{}]
    wanted += [{"strategy": other.strategy} for other in plan.runner_up]
    full = {f"sources.{name}.weight": "1.0" for name in plan.weights}
    # At equal weights of 1, so that λ alone says how much of every source goes in.
    scaled = [name for _, name in sorted((s.sweep_rank, s.id) for s in load().strategies.values() if s.sweep_rank is not None)]
    wanted += [{"strategy": method, **full, "parameters.lambda": value} for method in scaled for value in LAMBDAS]
    return _render(plan, wanted, relative_to, skip_illegal=True)


def candidate_of(plan: Plan, settings: dict[str, str], relative_to: Path | None = None) -> Candidate:
    """One candidate. Raises `BadInput` for settings that its method refuses."""
    return _render(plan, [settings], relative_to)[0]


def _render(plan: Plan, wanted: list[dict[str, str]], relative_to: Path | None, *, skip_illegal: bool = False) -> list[Candidate]:
    """One candidate per distinct recipe, in order; the shortlist leaves out what a strategy cannot take (a λ, an input count)."""
    found: dict[str, Candidate] = {}
    names: set[str] = set()
    for settings in wanted:
        try:
            rendered = render(plan, settings, relative_to=relative_to)
        except BadInput:
            if skip_illegal and settings:
                continue
            raise
        if rendered.recipe in found:
            continue
        name = _name(rendered.strategy, settings)
        while name in names:
            name += "'"
        names.add(name)
        found[rendered.recipe] = Candidate(name=name, settings=settings, recipe=rendered.recipe)
    return list(found.values())


def _name(strategy: str, settings: dict[str, str]) -> str:
    """Short and readable: `task_arithmetic lambda=0.7 persona.weight=1.0`; equal weights of all sources are left out."""
    weights = {key: value for key, value in settings.items() if key.startswith("sources.") and key.endswith(".weight")}
    same = len(weights) > 1 and len(set(weights.values())) == 1
    parts = [strategy]
    for key, value in settings.items():
        if key == "strategy" or (same and key in weights):
            continue
        parts.append(f"{key.removeprefix('parameters.').removeprefix('sources.')}={value}")
    if same:
        parts.append(f"weights={next(iter(weights.values()))}")
    return " ".join(parts)


def _split(text: str) -> list[str]:
    parts, depth, start = [], 0, 0
    for position, character in enumerate(text):
        if character in "[{":
            depth += 1
        elif character in "]}":
            depth -= 1
        elif character == "," and depth == 0:
            parts.append(text[start:position])
            start = position + 1
    return [*parts, text[start:]]
