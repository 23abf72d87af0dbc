"""Which engine, with what settings, in the memory that there is: the estimate's answer, put into the plan.

The figures come from `core.estimate`, which knows shapes (from headers, or from an architecture's name). Where nothing about the
sizes is known, `fits` is null and the note says what to name; nothing is guessed to fit.
"""

from __future__ import annotations

from mcp_server.core.estimate import estimate_plan
from mcp_server.core.models.plan import EngineChoice, Plan


def choose_engine(plan: Plan) -> EngineChoice | None:
    """The engine for a plan that merges; None for one that does not."""
    return estimate_plan(plan) if plan.strategy else None
