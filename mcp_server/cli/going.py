"""go, init: from sources to a measured merge in one command, or to a scenario that says more."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
import yaml

from mcp_server.cli.console import Json, emit, line, size
from mcp_server.cli.evidence import run_job
from mcp_server.cli.knowledge import write_new
from mcp_server.cli.merging import finish, foreground
from mcp_server.errors import NotFound
from mcp_server.formats.adapter_folder import open_adapter_folder
from mcp_server.formats.adapter_info import named_base
from mcp_server.formats.folder import classify
from mcp_server.formats.refs import anchor_ref
from mcp_server.schemas.evidence import Evaluation, Verification
from mcp_server.schemas.go import Gone, Prepared
from mcp_server.schemas.job import EvaluateRequest, MergeRequest, VerifyRequest
from mcp_server.steps.handles import kept_recipe
from mcp_server.steps.prepare import prepare, scenario_of
from mcp_server.steps.report import write_report
from mcp_server.steps.scenario import read_scenario

EXIT_UNDECIDED = 3


def register(app: typer.Typer) -> None:
    app.command()(go)
    app.command()(init)


def go(
    refs: Annotated[list[str], typer.Argument(help="adapters or models to merge, or one scenario YAML")],
    base: Annotated[str | None, typer.Option(help="the base; default: the one that the adapters name")] = None,
    out: Annotated[Path, typer.Option(help="folder to write; must not exist")] = Path("merged"),
    ram_gib: Annotated[float | None, typer.Option(help="memory that the merge may use")] = None,
    suite: Annotated[list[str] | None, typer.Option(help="what to measure (none: nothing); default: the advice's suites")] = None,
    seed: Annotated[int | None, typer.Option(help="for methods that drop at random; recorded in any case")] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="go on with the questions open")] = False,
    json: Json = False,
) -> int:
    """Inspect, advise, check, merge, verify, evaluate and report in one command, with one block of questions."""
    if len(refs) == 1 and Path(refs[0]).suffix in (".yaml", ".yml"):
        scenario = read_scenario(Path(refs[0]))
    else:
        scenario = scenario_of([anchor_ref(ref, Path.cwd()) for ref in refs], base and anchor_ref(base, Path.cwd()), ram_gib)
    found = prepare(scenario, ram_gib=ram_gib, out=out.resolve())
    if not json:
        show_prepared(found)
    if found.stop:
        result = Gone(prepared=found, next=f"model-merging recommend SCENARIO.yaml --explain (plan: {found.plan_id})")
        emit(result, json, lambda: line("stopped", found.stop))
        return 1
    if found.questions and not yes and not _agreed(json):
        stopped = Gone(prepared=found, next="answer in a scenario (model-merging init), or go on with --yes")
        emit(stopped, json, lambda: line("stopped", stopped.next))
        return EXIT_UNDECIDED
    recipe = kept_recipe(str(found.recipe_id))
    fields = {"recipe": recipe, "out": str(out.resolve()), "ram_gib": ram_gib, "seed": seed}
    ended = foreground(MergeRequest.model_validate(fields), "merge", quiet=json)
    if code := finish(ended):
        return code
    verified = Verification.model_validate(run_job(VerifyRequest(out=str(out.resolve())), quiet=json))
    suites = [name for name in (suite or found.suites) if name != "none"]
    measured = None
    if suites and verified.verdict == "verified":
        wanted = {"out": str(out.resolve()), "suites": suites, "quick": True}
        measured = Evaluation.model_validate(run_job(EvaluateRequest.of(wanted), quiet=json))
    written = write_report(out.resolve(), None)
    sound = verified.verdict == "verified" and (measured is None or measured.verdict == "passed")
    result = Gone(
        prepared=found,
        job=ended,
        output=str(out.resolve()),
        verification=verified.verdict,
        evaluation=measured.verdict if measured else None,
        report=written.html,
        next=f"open {written.html}" if sound else f"model-merging diagnose {out}",
    )
    emit(result, json, lambda: show_gone(result))
    return 0 if sound else 1


def _agreed(as_json: bool) -> bool:
    """One question for all that is open; only a person at a terminal can say yes."""
    return not as_json and sys.stdin.isatty() and typer.confirm("Go on with these questions open?", default=False)


def show_prepared(found: Prepared) -> None:
    for question in found.questions:
        line("question", question)
    for warning in found.findings:
        line("found", warning)
    weights = ", ".join(f"{name} {weight:.2f}" for name, weight in found.weights.items())
    line("advice", f"{found.verdict}: {found.strategy or '–'}{f' ({weights})' if weights else ''}; {found.because}")
    if found.engine:
        line("cost", f"{found.engine} engine, {size(found.peak_anon_bytes)} of memory, {size(found.disk_bytes)} of disk")


def show_gone(found: Gone) -> None:
    line("output", str(found.output))
    line("verified", str(found.verification))
    line("evaluated", found.evaluation or "not measured")
    line("next", found.next)


def init(
    folder: Annotated[Path, typer.Argument(help="where adapters and models lie, one folder each")] = Path(),
    output: Annotated[Path, typer.Option("-o", "--output", help="scenario to write; must not exist")] = Path("scenario.yaml"),
) -> int:
    """Write a scenario from the adapters and models found in a folder, with what their files say filled in."""
    found = [entry for entry in sorted(folder.iterdir()) if entry.is_dir() and classify(entry).kind in ("lora", "full")]
    adapters = [entry for entry in found if classify(entry).kind == "lora"]
    chosen = adapters or found
    if not chosen:
        raise NotFound(f"{folder.resolve()} holds no adapters and no models", "name the folder whose subfolders hold them")
    sources = [
        {"name": entry.name, "ref": str(entry.resolve()), "kind": "lora" if entry in adapters else "full"} for entry in chosen
    ]
    bases = {named_base(open_adapter_folder(str(entry)).config) for entry in adapters} - {None}
    scenario = {"sources": sources, **({"base_model": bases.pop()} if len(bases) == 1 else {})}
    open_fields = (
        "# For each source, what you know: capability, training_examples, status (works | broken | unevaluated | missing).\n"
        "# relation: {data_overlap: 0.1, capabilities: complementary}    goal: balanced    constraints: {ram_gib: 12}\n"
    )
    write_new(output, open_fields + yaml.safe_dump(scenario, sort_keys=False, allow_unicode=True))
    line("next", f"model-merging go {output}")
    return 0
