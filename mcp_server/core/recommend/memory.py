"""Which engine, with what settings, in the memory that there is.

The figures come from `core.estimate`, which knows shapes (from headers, or from an architecture's name). Where nothing about the
sizes is known the plan says so and asks; it never guesses that something fits.
"""

from __future__ import annotations

import importlib
import importlib.util

from mcp_server.core.models.estimation import EngineEstimate, Estimate
from mcp_server.core.models.plan import EngineChoice, Plan

GIB = 1 << 30


def choose_engine(plan: Plan) -> EngineChoice:
    """The engine that fits with the least memory; `fits` is None when sizes or the budget are unknown."""
    estimate = _estimate(plan)
    runner = _runner(plan)
    if estimate is None or not estimate.engines:
        note = "no checkpoint and no known architecture name to take sizes from; `estimate` tells once the files are there"
        return EngineChoice(id="mergekit" if runner != "mergekit-yaml" else "stream", settings=_settings(plan), note=note)
    usable = {name: cost for name, cost in estimate.engines.items() if cost.covers} or dict(estimate.engines)
    name = min(usable, key=lambda engine: (usable[engine].fits is False, usable[engine].peak_anon_bytes))
    cost = usable[name]
    return EngineChoice(
        id=name,
        settings={**_settings(plan), **cost.settings},
        fits=cost.fits,
        peak_anon_bytes=cost.peak_anon_bytes,
        note=_note(name, cost, estimate),
    )


def _estimate(plan: Plan) -> Estimate | None:
    if importlib.util.find_spec("mcp_server.core.estimate") is None:
        return None
    estimation = importlib.import_module("mcp_server.core.estimate")
    estimate_plan = getattr(estimation, "estimate_plan", None)
    estimate: Estimate | None = estimate_plan(plan) if estimate_plan else None
    return estimate


def _runner(plan: Plan) -> str:
    from mcp_server.core.catalog import load

    return load().strategies[plan.strategy.id].runner if plan.strategy else "mergekit-yaml"


def _settings(plan: Plan) -> dict[str, float]:
    constraints = plan.scenario.constraints
    return {"ram_gib": constraints.ram_gib} if constraints and constraints.ram_gib else {}


def _note(name: str, cost: EngineEstimate, estimate: Estimate) -> str:
    parts = [
        f"{name}: at most {cost.peak_anon_bytes / GIB:.2f} GiB that cannot be reclaimed, {cost.disk_bytes / GIB:.1f} GiB of disk"
    ]
    others = [f"{n} {c.peak_anon_bytes / GIB:.2f} GiB" for n, c in estimate.engines.items() if n != name and c.covers]
    if others:
        parts.append(f"the other engine: {', '.join(others)}")
    for what in ("verify", "evaluate"):
        if (step := getattr(estimate, what)) is not None:
            fits = {True: ", fits", False: ", does not fit", None: ""}[step.fits]
            parts.append(f"{what}: {step.peak_anon_bytes / GIB:.2f} GiB{fits}")
    return "; ".join(parts + estimate.notes)
