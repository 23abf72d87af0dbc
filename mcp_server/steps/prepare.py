"""Everything before a merge in one call: look, advise, render, check, cost. Nothing is started."""

from __future__ import annotations

from pathlib import Path

from mcp_server.errors import NotFound
from mcp_server.formats.checkpoint import locate
from mcp_server.formats.hub.copies import looking
from mcp_server.formats.recipe.whereabouts import absent_from
from mcp_server.formats.refs import demo_aliases
from mcp_server.schemas.go import Prepared
from mcp_server.schemas.scenario import Scenario, ScenarioSource
from mcp_server.steps.estimate import estimate
from mcp_server.steps.handles import keep_plan, keep_recipe
from mcp_server.steps.recommend import advise
from mcp_server.steps.validate import validate

MERGING = frozenset({"merge", "merge_with_caution"})


def scenario_of(refs: list[str], base: str | None, ram_gib: float | None = None) -> Scenario:
    """The scenario of sources that are named and nothing more."""
    from mcp_server.steps.scenario import scenario_from

    constraints = {"constraints": {"ram_gib": ram_gib}} if ram_gib else {}
    sources = [ScenarioSource(ref=ref).model_dump(exclude_none=True) for ref in refs]
    return scenario_from({"sources": sources, **({"base_model": base} if base else {}), **constraints})


def prepare(scenario: Scenario, *, ram_gib: float | None = None, out: Path | None = None) -> Prepared:
    """Raises what the steps raise; an answer that is no is in `stop`."""
    from mcp_server.steps.render import render  # Jinja costs a fifth of the server's start

    require_sources(scenario)
    plan = keep_plan(advise(scenario))
    found = Prepared(
        verdict=plan.verdict,
        because=plan.rules[0].because if plan.rules else "",
        strategy=plan.strategy.id if plan.strategy else None,
        weights=plan.weights,
        warnings=[warning.message for warning in plan.warnings],
        questions=plan.questions,
        suites=[step.suite for step in plan.evaluation if step.when == "after the merge"],
        plan_id=plan.plan_id,
    )
    if plan.verdict not in MERGING or plan.strategy is None:
        return found.model_copy(
            update={"stop": "; ".join([f"the advice is {plan.verdict}: {found.because}", *plan.differences[:2]])}
        )
    rendered = keep_recipe(render(plan))
    if absent := absent_from(rendered.recipe):
        stop = f"not on this machine: {', '.join(absent)}"
        return found.model_copy(update={"recipe_id": rendered.recipe_id, "absent": absent, "stop": stop})
    checked = validate(rendered.recipe, ram_gib=ram_gib)
    errors = [f for f in checked.findings if f.severity == "error"]
    others = [f for f in checked.findings if f.severity == "warning"]
    found = found.model_copy(
        update={"recipe_id": rendered.recipe_id, "findings": [f"{f.code}: {f.message}" for f in [*errors, *others]]}
    )
    if errors:
        return found.model_copy(update={"stop": f"the recipe has errors: {errors[0].message}"})
    cost = estimate(rendered.recipe, ram_gib=ram_gib, out=out)
    chosen = next((name for name, engine in cost.engines.items() if engine.fits is not False), None)
    if chosen is None:
        return found.model_copy(update={"fits": False, "stop": "no engine fits the memory or the disk; see estimate"})
    engine = cost.engines[chosen]
    return found.model_copy(
        update={
            "engine": chosen,
            "peak_anon_bytes": engine.peak_anon_bytes,
            "disk_bytes": engine.disk_bytes,
            "seconds": engine.seconds,
            "fits": engine.fits,
        }
    )


@looking()
def require_sources(scenario: Scenario) -> None:
    """Raise `NotFound` for a path with nothing at its end, or what a hub refuses; what can still be fetched or made is left to
    `absent_from`."""
    for ref in filter(None, (scenario.base_model, *(source.ref for source in scenario.sources or []))):
        for part in [] if ref.lower() == "none" else [ref] if Path(ref).exists() else ref.split("+"):
            try:
                locate(part)
            except NotFound as missing:
                if not missing.details.get("hub_id") and part not in demo_aliases():
                    raise
