"""What a bake-off of the plan that a recipe came from would take, told beside the estimate of its merge."""

from __future__ import annotations

from typing import Final

from mcp_server.errors import BadInput, MergingError
from mcp_server.formats.lineage import Lineage
from mcp_server.schemas.estimate import Estimate, SweepEstimate
from mcp_server.schemas.job import EvaluateRequest, SweepRequest
from mcp_server.steps.evaluate.line_up import models_of, suites_of
from mcp_server.steps.handles import plan_file, plan_of
from mcp_server.steps.sweep.candidates import shortlist
from mcp_server.steps.sweep.cost import FIRST_LOOK, cost_of, takes, within
from mcp_server.steps.sweep.place import lineage_of_plan

MINUTES: Final = (5, 15, 60)
"""Searches that are told; in between it is in proportion."""


def with_sweep(found: Estimate, recipe: str) -> Estimate:
    """The estimate, with its plan's sweep where the recipe names a plan of this store and sizes and suites are known here."""
    try:
        return found.model_copy(update={"sweep": sweep_ahead(recipe)})
    except (MergingError, OSError):
        return found  # what is wrong with a model or a suite is said by who opens it to merge or measure


def sweep_ahead(recipe: str) -> SweepEstimate | None:
    """By the suites that a sweep takes where none is named. None for a recipe of no plan, or where a suite cannot be counted."""
    if (plan := plan_of(recipe)) is None or plan.plan_id is None or plan.strategy is None:
        return None
    near = plan_file(plan.plan_id).parent
    candidates = shortlist(plan, near)
    lineage = lineage_of_plan(plan, near, candidates[0].recipe)
    request = SweepRequest(plan=str(plan_file(plan.plan_id)), out=str(near / "sweep"))
    seconds = takes(request, lineage, len(candidates))
    least = cost_of(request.model_copy(update={"minutes": 1.0}), lineage, FIRST_LOOK)
    if seconds is None or least is None:
        return None
    refs = models_of(lineage, out=None, base=None, sources=None, against={})
    return SweepEstimate(
        candidates=len(candidates),
        seconds=seconds,
        least_minutes=round(least.surely / 60, 1),
        within={str(minutes): found for minutes in MINUTES if (found := _tried(request, lineage, minutes)) is not None},
        suites=[suite.name for suite in suites_of(EvaluateRequest(), refs)],
    )


def _tried(request: SweepRequest, lineage: Lineage, minutes: int) -> str | None:
    """Candidates of a search: at least, where each is asked every prompt, and at most, where each ends after the first look."""
    try:
        wanted = within(request.model_copy(update={"minutes": float(minutes)}), lineage)
    except BadInput:
        return None
    if (cost := cost_of(wanted, lineage, wanted.limit)) is None:
        return None
    left = 60 * minutes - cost.sources - cost.test
    least, most = (max(1, int(left / each)) for each in (cost.first + cost.whole, cost.first))
    return str(least) if least == most else f"{least} to {most}"
