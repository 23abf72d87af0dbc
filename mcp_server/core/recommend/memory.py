"""Which engine, with what settings, in the memory that there is: the estimate's answer, put into the plan.

The figures come from `core.estimate`, which knows shapes (from headers, or from an architecture's name). Where nothing about the
sizes is known, `fits` is null and the note says what to name; nothing is guessed to fit.
"""

from __future__ import annotations

from typing import Final

from mcp_server.core.catalog.signals import Facts
from mcp_server.core.estimate import estimate_plan
from mcp_server.core.models.plan import EngineChoice, Plan

GIB: Final = 1 << 30


def choose_engine(plan: Plan) -> EngineChoice | None:
    """The engine for a plan that merges; None for one that does not."""
    return estimate_plan(plan) if plan.strategy else None


def memory_facts(engine: EngineChoice | None) -> Facts:
    """What the rules may read about memory; unknown where sizes or the budget are."""
    needs = engine.evidence if engine else {}
    evaluate = needs.get("evaluate")
    return {
        "merge_fits": engine.fits if engine else None,
        "verify_fits": needs["verify"].fits if "verify" in needs else None,
        "evaluate_fits": evaluate.fits if evaluate else None,
        "evaluate_gib": evaluate.peak_anon_bytes / GIB if evaluate else None,
    }
