"""The tools that only look: sources, strategy, recipe, findings, cost. No process is started, no model downloaded."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from mcp_server.catalog import load as load_catalog
from mcp_server.errors import BadInput
from mcp_server.schemas.base import Frozen
from mcp_server.schemas.diagnosis import Diagnosis
from mcp_server.schemas.estimate import Estimate
from mcp_server.schemas.inspect import Inspection
from mcp_server.schemas.plan import Plan, Rendered
from mcp_server.schemas.scenario import Scenario
from mcp_server.schemas.validation import Validation
from mcp_server.server.access import Access
from mcp_server.server.checked import CheckedTool, checked
from mcp_server.server.inputs import (
    LOOKS,
    READS,
    AdapterSpace,
    Form,
    Offset,
    Out,
    Output,
    PageSize,
    PlanFile,
    PlanTable,
    RamGib,
    Rank,
    Recipe,
    Ref,
)
from mcp_server.steps.estimate import estimate
from mcp_server.steps.handles import keep_plan, keep_recipe
from mcp_server.steps.inspect import inspect_models as inspect_checkpoints
from mcp_server.steps.recommend import advise
from mcp_server.steps.scenario import check_names, read_scenario
from mcp_server.steps.sweep.ahead import with_sweep
from mcp_server.steps.validate import fix as fix_recipe
from mcp_server.steps.validate import validate


def tools() -> list[CheckedTool]:
    return [
        checked(inspect_models, "Inspect models and adapters", LOOKS),
        checked(recommend_strategy, "Recommend merge, retrain or route", LOOKS),
        checked(list_strategies, "List merge strategies", READS),
        checked(render_config, "Render the merge recipe", READS),
        checked(validate_config, "Validate a merge recipe", LOOKS),
        checked(estimate_ram, "Estimate memory, disk and time", LOOKS),
        checked(diagnose_merge, "Find out why a merge is bad", READS),
    ]


def inspect_models(
    refs: Annotated[
        list[Ref],
        Field(min_length=1, max_length=12, description="The sources: folders, hub ids, demo:…, BASE+ADAPTER."),
    ],
    base: Annotated[Ref | None, Field(description="The base, when it is not among them.")] = None,
) -> Inspection:
    """Say what models and adapters are, from headers and configs: architecture, sizes, dtype, rank, base, tokenizer, licence.
    `compatible`: true, false or null (unknown); `differences` names each field in the way.
    """
    access = Access.now()
    return inspect_checkpoints([access.ref(ref) for ref in refs], base=base and access.ref(base))


def recommend_strategy(
    scenario: Annotated[
        Scenario | None,
        Field(description="What is to be merged and why. Leave out what you do not know; it comes back as questions."),
    ] = None,
    scenario_file: Annotated[str | None, Field(description="Path of a scenario YAML, instead.")] = None,
) -> Plan:
    """Decide whether to merge, retrain, route, distill or train first; when merging, choose strategy, parameters, weights and
    engine. Says which rules decided, and which questions would change it: ask the user those. Later calls take the `plan_id`.
    """
    access = Access.now()
    if (scenario is None) == (scenario_file is None):
        found = "neither" if scenario is None else "both"
        raise BadInput(f"one of scenario and scenario_file is needed, found {found}", "give what you know as `scenario`")
    if scenario is not None:
        check_names(scenario)
        return slim(advised(access.scenario(scenario)))
    path = access.file(scenario_file or "", "scenario")
    return slim(advised(access.scenario(read_scenario(path), path.parent)))


def advised(scenario: Scenario) -> Plan:
    """The plan, with what was measured of these sources, kept under its id."""
    return keep_plan(advise(scenario))


def slim(plan: Plan) -> Plan:
    """What an agent decides by. The scenario came from it, and the kept plan has everything else: reasons of warnings, sources
    of what to try and to measure."""
    told = {warning.code for warning in plan.warnings}
    return plan.model_copy(
        update={
            "scenario": Scenario(),
            "rules": [rule for rule in plan.rules if rule.id not in told],
            "runner_up": [one.model_copy(update={"why": "", "source": ""}) for one in plan.runner_up],
            "evaluation": [one.model_copy(update={"why": "", "source": ""}) for one in plan.evaluation],
        }
    )


def list_strategies(offset: Offset = 0, limit: PageSize = 20) -> StrategyPage:
    """List the merge strategies: idea, inputs, base, when to use each and when not. merge://strategies/{id} has parameters,
    ranges and sources of one."""
    return page_of_strategies(load_catalog(), offset, limit)


def render_config(
    plan: PlanTable = None,
    plan_file: PlanFile = None,
    overrides: Annotated[
        dict[str, Any] | None,
        Field(
            description='Changes by dotted name: {"sources.persona.weight": 0.7, "parameters.lambda": 0.8, "strategy": "ties"}.',
            examples=[{"sources.persona.weight": 0.7, "parameters.lambda": 0.8, "strategy": "ties"}],
        ),
    ] = None,
) -> Rendered:
    """Turn a plan into a mergekit recipe with absolute paths. validate_config and launch_merge take its `recipe_id`."""
    from mcp_server.steps.render import render  # Jinja alone would take a fifth of the time that the server has to start

    access = Access.now()
    chosen = access.plan(plan, plan_file)
    settings = {name: as_text(value) for name, value in (overrides or {}).items()}
    return keep_recipe(render(chosen, settings, relative_to=access.folder))


def validate_config(
    recipe: Recipe,
    fix: Annotated[bool, Field(description="Also return `fixed_recipe`.")] = False,
    ram_gib: RamGib = None,
    output_format: Form = None,
) -> Validation:
    """Find in a recipe what mergekit would report late or never: wrong names and ranges, a missing base,
    architectures and tokenizers that differ, ignored keys. `ok` is false exactly when a finding is an error.
    """
    text, folder = Access.now().recipe(recipe)
    return (fix_recipe if fix else validate)(text, folder=folder, ram_gib=ram_gib, output_format=output_format)


def estimate_ram(
    recipe: Recipe,
    ram_gib: RamGib = None,
    out: Annotated[Out | None, Field(description="Where the output goes; its disk is checked.")] = None,
    output: Output = "model",
    output_format: Form = None,
    rank: Rank = None,
    space: AdapterSpace = "weights",
) -> Estimate:
    """Say what a merge costs with each engine: peak memory (an upper bound), disk, seconds, whether it fits; and verify, evaluate
    and a sweep.
    """
    access = Access.now()
    text, folder = access.recipe(recipe)
    place = access.output(out) if out else None
    form: dict[str, Any] = {"output": output, "output_format": output_format, "rank": rank, "space": space}
    return with_sweep(estimate(text, ram_gib=ram_gib, out=place, folder=folder, **form), text)


def diagnose_merge(out: Out) -> Diagnosis:
    """Name the cause when a merge disappoints (gibberish, a lost skill, a failed check), with evidence and the next step. Starts
    nothing.
    """
    from mcp_server.steps.diagnose import diagnose

    return diagnose(Access.now().existing_folder(out))


def as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


if TYPE_CHECKING:
    from mcp_server.catalog import Catalog, Strategy

PHRASES_SHOWN = 2


class StrategySummary(Frozen):
    id: str
    title: str
    idea: str
    inputs: str = Field(description="how many sources, the base not counted")
    base: str = Field(description="required, optional, ignored, or one_of_the_sources")
    when: list[str]
    when_not: list[str]
    adapter_space: bool = Field(description="exact on LoRA adapters alone: launch_merge(output='adapter')")


class StrategyPage(Frozen):
    strategies: list[StrategySummary]
    total: int
    next_offset: int | None = None


def page_of_strategies(catalog: Catalog, offset: int, limit: int) -> StrategyPage:
    """Strategies `offset` to `offset + limit` in alphabetical order."""
    everything = sorted(catalog.strategies.values(), key=lambda s: s.id)
    page = everything[offset : offset + limit]
    after = offset + len(page)
    return StrategyPage(
        strategies=[_summary(s) for s in page],
        total=len(everything),
        next_offset=after if after < len(everything) else None,
    )


def _summary(strategy: Strategy) -> StrategySummary:
    low, high = strategy.inputs.min, strategy.inputs.max
    if high is None:
        count = f"{low} or more"
    else:
        count = str(low) if high == low else f"{low} to {high}"
    return StrategySummary(
        id=strategy.id,
        title=strategy.title,
        idea=strategy.idea,
        inputs=count,
        base=strategy.inputs.base,
        when=strategy.when[:PHRASES_SHOWN],
        when_not=strategy.when_not[:PHRASES_SHOWN],
        adapter_space=strategy.adapter_space,
    )
