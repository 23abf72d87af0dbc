"""inspect, recommend, render, estimate: what is known before a byte of weights is read."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import typer

from mcp_server.catalog import Strategy
from mcp_server.catalog import load as load_catalog
from mcp_server.cli.console import Json, cell, emit, line, say, size, stderr, table
from mcp_server.errors import MergingError, NotFound, OutputExists
from mcp_server.schemas.base import Frozen, OutputFormat, Space
from mcp_server.schemas.estimate import EngineEstimate, Estimate
from mcp_server.schemas.inspect import Inspection
from mcp_server.schemas.plan import Plan
from mcp_server.steps.estimate import estimate as estimate_recipe
from mcp_server.steps.handles import PLAN_ID, RECIPE_ID, keep_plan, keep_recipe, kept_plan, kept_recipe, plan_text
from mcp_server.steps.inspect import inspect_models
from mcp_server.steps.recommend import advise
from mcp_server.steps.render import parse_overrides
from mcp_server.steps.render import render as render_plan
from mcp_server.steps.scenario import read_plan, read_scenario, with_cross_context
from mcp_server.steps.sweep.ahead import with_sweep
from mcp_server.system.files import write_text
from mcp_server.system.outputs import require_file
from mcp_server.system.policy import for_person
from mcp_server.system.settings import load
from mcp_server.system.yaml_io import load_yaml_all

WARNINGS_SHOWN = 5
QUESTIONS_SHOWN = 4


Kind = Literal["scenario", "plan", "recipe"]
_MARKS: Final[dict[Kind, frozenset[str]]] = {
    "plan": frozenset({"verdict"}),
    "recipe": frozenset({"merge_method", "experts", "models", "slices"}),
    "scenario": frozenset({"sources"}),
}
"""Kind → the keys of which it has one; a text is of the first kind that fits."""
Overwrite = Annotated[bool, typer.Option("--overwrite", help="replace the file")]


def register(app: typer.Typer) -> None:
    for command in (inspect, strategies, recommend, render, estimate):
        app.command()(command)


def read_text(path: Path, what: str) -> str:
    """The text of a file, or of a recipe by id; a plan's id stands for its recipe."""
    if not path.exists() and RECIPE_ID.fullmatch(str(path)):
        return kept_recipe(str(path))
    if not path.exists() and PLAN_ID.fullmatch(str(path)):
        return render_plan(kept_plan(str(path))).recipe
    if not path.is_file():
        raise NotFound(f"there is no {what} at {path}", f"give the path of a {what} file")
    return path.read_text(encoding="utf-8")


def plan_given(plan: Path) -> Plan:
    """A plan by file or by id."""
    return kept_plan(str(plan)) if PLAN_ID.fullmatch(str(plan)) and not plan.exists() else read_plan(plan)


def _is_of(kind: Kind, text: str) -> bool:
    """YAML mappings of that kind; an empty file is nobody's loss."""
    try:
        documents = [found for found in load_yaml_all(text, "it") if found is not None]
    except MergingError:
        return False
    return all(
        isinstance(found, dict) and next((each for each, marks in _MARKS.items() if not marks.isdisjoint(found)), None) == kind
        for found in documents
    )


def write_new(path: Path, text: str, kind: Kind, *, overwrite: bool = False) -> None:
    """Only a text of the same kind is replaced, and only when that was asked for: what the command has read is of another."""
    if os.path.lexists(path) and not overwrite:
        raise OutputExists(f"{path} exists already", "choose another path, or add --overwrite")
    for_person(load()).check_write(path)
    require_file(path, lambda old: _is_of(kind, old), f"a {kind}")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text)
    stderr.print(f"wrote {path}", markup=False, soft_wrap=True)


def inspect(
    refs: Annotated[list[str], typer.Argument(help="folders, or hub ids, of which only headers are read")],
    base: Annotated[str | None, typer.Option(help="the base model, if it is not one of the sources")] = None,
    json: Json = False,
) -> int:
    """What the sources are and whether they can be merged, from headers alone."""
    found = inspect_models(refs, base=base)
    emit(found, json, lambda: show_inspection(found))
    if any(source.kind == "not_a_model" for source in found.sources):
        return 2
    return 1 if found.compatible is False else 0


def show_inspection(found: Inspection) -> None:
    rows = [
        (s.ref, s.kind, s.architecture, s.layers, s.hidden, s.vocabulary, s.dtype, size(s.bytes), s.adapter and s.adapter.ranks)
        for s in found.sources
    ]
    table("Sources", ("source", "kind", "architecture", "layers", "hidden", "vocabulary", "dtype", "size", "rank"), rows)
    if found.differences:
        differences = [
            (d.field, ", ".join(f"{k}: {v}" for k, v in d.values.items()), d.meaning, d.why) for d in found.differences
        ]
        table("Differences", ("field", "values", "meaning", "why"), differences)
    for source in found.sources:
        if source.detail:
            line("note", f"{source.ref}: {source.detail}")
    for source in found.sources:
        if source.revision:
            line("on the hub", f"{source.ref} at {source.revision[:12]}: only headers were read")
    for note in found.licences:
        line("licence", note)
    answer = {True: "yes", False: "no", None: "unknown"}[found.compatible]
    line("mergeable", f"{answer} (with each other)")


def strategies(json: Json = False) -> int:
    """The merge methods: what each takes and when to use it."""
    everything = sorted(load_catalog().strategies.values(), key=lambda one: one.id)
    emit(StrategyList(strategies=everything), json, lambda: show_strategies(everything))
    return 0


class StrategyList(Frozen):
    strategies: list[Strategy]


def show_strategies(everything: list[Strategy]) -> None:
    rows = [
        (
            s.id,
            f"{s.inputs.min}" if s.inputs.max == s.inputs.min else f"{s.inputs.min}–{s.inputs.max or '…'}",
            s.inputs.base,
            s.idea,
        )
        for s in everything
    ]
    table("Strategies", ("strategy", "sources", "base", "idea"), rows, whole=(0, 1, 2))
    line("next", "model-merging render PLAN --set strategy=NAME")


def recommend(
    scenario: Annotated[Path, typer.Argument(help="scenario YAML, or the id of a plan to show again")],
    output: Annotated[Path | None, typer.Option("-o", "--output", help="save the plan here")] = None,
    overwrite: Overwrite = False,
    cross: Annotated[
        Path | None, typer.Option(help="what `evaluate --cross -o FILE` measured: sources in each other's contexts")
    ] = None,
    compared: Annotated[
        Path | None,
        typer.Option("--compare", help="what `compare -o FILE` measured; default: the newest comparison of these sources"),
    ] = None,
    explain: Annotated[bool, typer.Option("--explain", help="every reason with its source, and every warning in full")] = False,
    json: Json = False,
) -> int:
    """Merge or not, how, and why."""
    if PLAN_ID.fullmatch(str(scenario)) and not scenario.exists():
        plan = kept_plan(str(scenario))
    else:
        described = read_scenario(scenario)
        plan = keep_plan(advise(with_cross_context(described, cross) if cross else described, compared))
    if output:
        write_new(output, plan_text(plan), "plan", overwrite=overwrite)
    emit(plan, json, lambda: show_plan(plan, explain=explain, scenario=scenario, saved=output))
    return 1 if plan.verdict == "cannot_merge" else 0


def show_plan(plan: Plan, *, explain: bool = False, scenario: Path | None = None, saved: Path | None = None) -> None:
    """One screen: what, with which numbers, what speaks against it, what to ask; the verdict and the next command last."""
    if plan.strategy:
        parameters = ", ".join(f"{k} {cell(v)}" for k, v in plan.strategy.parameters.items())
        line("strategy", plan.strategy.id + (f" ({parameters})" if parameters else ""))
    if plan.weights:
        line("weights", ", ".join(f"{k} {v:.2f}" for k, v in plan.weights.items()))
    if plan.engine:
        fits = {True: "fits", False: "does not fit", None: "size unknown"}[plan.engine.fits]
        line("engine", f"{plan.engine.id}, {fits}. {plan.engine.note}".rstrip())
    if plan.runner_up:
        line("then try", ", ".join(r.strategy for r in plan.runner_up))
    if plan.evaluation:
        line("measure", ", ".join(step.suite for step in plan.evaluation))
    for difference in plan.differences:
        line("differs", difference)
    told = {w.code for w in plan.warnings}
    if explain:
        for rule in plan.rules:
            if rule.id not in told:
                line("because", f"{rule.because} [{rule.id}; {rule.source}]")
        for runner_up in plan.runner_up:
            line(runner_up.strategy, f"{runner_up.why} [{runner_up.rule}; {runner_up.source}]")
        for step in plan.evaluation:
            line(step.suite, f"{step.why} [{step.rule}; {step.source}]")
        for warning in plan.warnings:
            line("warning", f"{warning.message} [{warning.code}]")
    else:
        for warning in plan.warnings[:WARNINGS_SHOWN]:
            line("warning", shortened(warning.message))
    for question in plan.questions if explain else plan.questions[:QUESTIONS_SHOWN]:
        line("question", question if explain else shortened(question))
    hidden = max(0, len(plan.warnings) - WARNINGS_SHOWN) + max(0, len(plan.questions) - QUESTIONS_SHOWN)
    if hidden and not explain:
        line("", f"{hidden} more warnings and questions: --explain")
    line("verdict", f"{plan.verdict}: {plan.rules[0].because}" if plan.rules else plan.verdict)
    if plan.strategy:
        line("next", f"model-merging render {saved or plan.plan_id or scenario} -o recipe.yml")


def shortened(text: str) -> str:
    """The first sentence or clause, so that a list of them fits a screen."""
    end = min((i for mark in (". ", "; ", "? ") if (i := text.find(mark)) > 0), default=len(text))
    return text[: end + 1].rstrip(" ;")


def render(
    plan: Annotated[Path, typer.Argument(help="plan YAML as `recommend -o` wrote it, or a plan's id")],
    set_: Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE, such as sources.persona.weight=0.7")] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="save the recipe here")] = None,
    overwrite: Overwrite = False,
    json: Json = False,
) -> int:
    """Turn a plan into a recipe that any folder can run."""
    rendered = keep_recipe(render_plan(plan_given(plan), parse_overrides(set_ or [])))
    if output:
        write_new(output, rendered.recipe, "recipe", overwrite=overwrite)
        rendered = rendered.model_copy(update={"path": str(output.resolve())})
    for warning in rendered.warnings:
        stderr.print(f"warning {warning.code}: {warning.message}", markup=False, soft_wrap=True)
    emit(rendered, json, lambda: None if output else say(rendered.recipe))
    return 0


def estimate(
    recipe: Annotated[Path, typer.Argument(help="recipe YAML")],
    ram_gib: Annotated[float | None, typer.Option(help="memory to fit into")] = None,
    out: Annotated[Path | None, typer.Option(help="where the output would go; its free disk is checked")] = None,
    output: Annotated[Literal["model", "adapter"], typer.Option(help="as in merge")] = "model",
    output_format: Annotated[OutputFormat | None, typer.Option(help="as in merge")] = None,
    rank: Annotated[int | None, typer.Option(help="as in merge")] = None,
    space: Annotated[Space, typer.Option(help="as in merge")] = "weights",
    json: Json = False,
) -> int:
    """What the merge will cost, per engine: memory, disk, time."""
    text, folder = read_text(recipe, "recipe"), recipe.resolve().parent
    form: dict[str, Any] = {"output": output, "output_format": output_format, "rank": rank, "space": space}
    found = with_sweep(estimate_recipe(text, ram_gib=ram_gib, out=out, folder=folder, **form), text)
    emit(found, json, lambda: show_estimate(found))
    return 1 if all(engine.fits is False for engine in found.engines.values()) else 0


def _after(found: Estimate) -> list[tuple[str, EngineEstimate]]:
    return [(name, cost) for name, cost in (("verify", found.verify), ("evaluate", found.evaluate)) if cost is not None]


def show_estimate(found: Estimate) -> None:
    rows = [
        (
            name,
            size(e.peak_anon_bytes),
            size(e.page_cache_bytes),
            size(e.disk_bytes),
            f"{e.seconds.low:.0f}–{e.seconds.high:.0f} s",
            e.fits,
            "; ".join(e.why_not) or ", ".join(f"{k}: {size(v)}" for k, v in e.breakdown.items()),
        )
        for name, e in [*found.engines.items(), *_after(found)]
    ]
    columns = ("engine or step", "memory needed", "page cache (optional)", "disk", "time", "fits", "made of")
    table("Estimate (upper bounds)", columns, rows)
    for note in [*found.notes, *([found.sweep.in_words()] if found.sweep else [])]:
        stderr.print(note, markup=False, soft_wrap=True)
