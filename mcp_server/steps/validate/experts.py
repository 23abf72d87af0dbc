"""MM6xx: mixtures of experts (mergekit-moe) and recipes of several stages (mergekit-multi)."""

from __future__ import annotations

from collections.abc import Iterator

from mcp_server.errors import did_you_mean
from mcp_server.formats.recipe import Recipe
from mcp_server.formats.recipe.keys import GATE_MODES
from mcp_server.steps.validate.context import Context
from mcp_server.steps.validate.registry import Found, check


@check("MM601")
def gate_mode(context: Context) -> Iterator[Found]:
    recipe = context.recipe
    if recipe.kind == "moe" and recipe.gate_mode not in GATE_MODES:
        hint = did_you_mean(recipe.gate_mode, GATE_MODES) or f" Known: {', '.join(GATE_MODES)}."
        yield Found(f"gate_mode {recipe.gate_mode!r} is unknown.{hint}", "gate_mode")


@check("MM602")
def expert_prompts(context: Context) -> Iterator[Found]:
    if context.recipe.kind != "moe" or context.recipe.gate_mode == "random":
        return
    for number, expert in enumerate(context.recipe.experts):
        if not expert.positive_prompts:
            yield Found(f"{expert.source_model} has no positive_prompts", f"experts[{number}]")


@check("MM603")
def experts_differ(context: Context) -> Iterator[Found]:
    experts = context.recipe.experts
    if context.recipe.kind != "moe" or context.recipe.gate_mode == "random" or len(experts) < 2:
        return
    if len({(e.positive_prompts, e.negative_prompts) for e in experts}) == 1:
        yield Found("all experts have the same prompts", "experts")
    if len({e.source_model for e in experts}) == 1:
        yield Found(f"all experts are {experts[0].source_model}", "experts")


@check("MM604")
def enough_experts(context: Context) -> Iterator[Found]:
    recipe = context.recipe
    if recipe.kind == "moe" and not 1 <= recipe.experts_per_token <= max(1, len(recipe.experts)):
        yield Found(f"experts_per_token is {recipe.experts_per_token}, with {len(recipe.experts)} experts", "experts_per_token")


@check("MM605")
def stages_connect(context: Context) -> Iterator[Found]:
    stages = context.stages
    names = [stage.name for stage in stages]
    for name in dict.fromkeys(n for n in names if n is not None and names.count(n) > 1):
        yield Found(f"{names.count(name)} stages are named {name!r}", "stages")
    if names.count(None) > 1:
        yield Found(f"{names.count(None)} stages have no name; only the last may be without", "stages")
    if names and None not in names:
        yield Found(
            f"the last stage has the name {names[-1]!r}: every stage is named, and the output is the stage without a name",
            f"stages[{len(names) - 1}].name",
            "remove that stage's name",
        )
    if circle := _circle(stages):
        yield Found(f"the stages refer to each other in a circle: {' → '.join(circle)}", "stages")


@check("MM606")
def name_without_stages(context: Context) -> Iterator[Found]:
    if context.recipe.name and not context.stage_names:
        yield Found(f"the name {context.recipe.name!r} is ignored", "name")


def _circle(stages: tuple[Recipe, ...]) -> list[str]:
    """Names of stages that need each other, or []."""
    names = {stage.name for stage in stages if stage.name}
    needs = {s.name: [r.base for r in s.references() if r.base in names] for s in stages if s.name}
    done: set[str] = set()

    def visit(name: str, path: list[str]) -> list[str]:
        if name in path:
            return [*path[path.index(name) :], name]
        if name in done:
            return []
        for other in needs.get(name, []):
            if found := visit(other, [*path, name]):
                return found
        done.add(name)
        return []

    for name in needs:
        if name and (found := visit(name, [])):
            return found
    return []
