"""go, init: from sources to a measured merge in one command, or to a scenario that says more."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer
import yaml

from mcp_server.cli.console import Json, cell, emit, line, size
from mcp_server.cli.evidence import EXIT_OF_EVALUATION, EXIT_OF_VERIFICATION, anchored_suite, run_job
from mcp_server.cli.knowledge import Overwrite, shortened, write_new
from mcp_server.cli.merging import finish, foreground, output_path
from mcp_server.errors import BadInput, NotFound
from mcp_server.formats.adapter_folder import open_adapter_folder
from mcp_server.formats.adapter_info import named_base
from mcp_server.formats.folder import classify
from mcp_server.formats.provenance import not_ours
from mcp_server.formats.refs import anchor_ref, demo_aliases
from mcp_server.formats.suites import find_suite
from mcp_server.schemas.evidence import Evaluation, Verification
from mcp_server.schemas.go import Gone, Prepared
from mcp_server.schemas.job import EvaluateRequest, MergeRequest, PrepareRequest, VerifyRequest
from mcp_server.schemas.scenario import Scenario
from mcp_server.steps.handles import kept_recipe
from mcp_server.steps.prepare import prepare, scenario_of
from mcp_server.steps.report import write_report
from mcp_server.steps.scenario import read_scenario
from mcp_server.system.outputs import require_folder
from mcp_server.system.paths import expanded

EXIT_UNDECIDED = 3


def register(app: typer.Typer) -> None:
    app.command()(go)
    app.command()(init)


def go(
    refs: Annotated[list[str], typer.Argument(help="adapters or models to merge, or one scenario YAML")],
    base: Annotated[str | None, typer.Option(help="the base; default: the one that the adapters name")] = None,
    out: Annotated[Path, typer.Option(help="folder to write")] = Path("merged"),
    ram_gib: Annotated[float | None, typer.Option(help="memory that the merge may use")] = None,
    suite: Annotated[list[str] | None, typer.Option(help="what to measure (none: nothing); default: the advice's suites")] = None,
    data: Annotated[list[str] | None, typer.Option(help="your own .jsonl: prompt and expected a line; repeat for more")] = None,
    seed: Annotated[int | None, typer.Option(help="for methods that drop at random; recorded in any case")] = None,
    overwrite: Annotated[bool, typer.Option(help="replace the output folder")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="go on with the questions open")] = False,
    json: Json = False,
) -> int:
    """Inspect, advise, check, merge, verify, evaluate and report in one command, with one block of questions."""
    target = output_path(out)
    files = [str(expanded(file).resolve()) for file in data or []]
    for name in (*(name for name in suite or [] if name != "none"), *files):
        find_suite(anchored_suite(name), [])
    require_folder(target, overwrite=overwrite, not_ours=not_ours)
    scenario = scenario_given(refs, base, ram_gib)
    found = prepare(scenario, ram_gib=ram_gib, out=target)
    if found.absent and all(ref in demo_aliases() for ref in found.absent):
        run_job(PrepareRequest(), quiet=json)
        found = prepare(scenario, ram_gib=ram_gib, out=target)
    if not json:
        show_prepared(found)
    if found.stop:
        result = Gone(prepared=found, next=next_after_stop(found, refs))
        emit(result, json, lambda: show_stop(result))
        return 1
    if found.questions and not yes and not _agreed(json):
        stopped = Gone(prepared=found, next=f"model-merging go {shlex.join(refs)} --out {shlex.quote(str(out))} --yes")
        emit(stopped, json, lambda: show_open(stopped))
        return EXIT_UNDECIDED
    recipe = kept_recipe(str(found.recipe_id))
    fields = {"recipe": recipe, "out": str(target), "ram_gib": ram_gib, "seed": seed, "overwrite": overwrite}
    ended = foreground(MergeRequest.model_validate(fields), "merge", quiet=json)
    if code := finish(ended):
        return code
    verified = Verification.model_validate(run_job(VerifyRequest(out=str(target)), quiet=json))
    suites = [anchored_suite(name) for name in (suite or found.suites) if name != "none"]
    measured = None
    if (suites or files) and verified.verdict == "verified":
        wanted = {"out": str(target), "suites": suites, "data": files, "quick": True}
        measured = Evaluation.model_validate(run_job(EvaluateRequest.of(wanted), quiet=json))
    written = write_report(target, None)
    result = Gone(
        prepared=found,
        job=ended,
        output=str(target),
        verification=verified.verdict,
        evaluation=measured.verdict if measured else None,
        report=written.html,
        next=next_after(out, verified, measured),
    )
    emit(result, json, lambda: show_gone(result, measured))
    return EXIT_OF_VERIFICATION[verified.verdict] or (EXIT_OF_EVALUATION[measured.verdict] if measured else 0)


def scenario_given(refs: list[str], base: str | None, ram_gib: float | None) -> Scenario:
    """One scenario file, or sources by name. Raises `BadInput` for `--base` beside a file, which says its own."""
    if len(refs) == 1 and Path(refs[0]).suffix in (".yaml", ".yml"):
        if base is not None:
            raise BadInput("--base stands beside a scenario, which names its own", f"write base_model in {refs[0]}")
        return read_scenario(Path(refs[0]))
    return scenario_of([anchor_ref(ref, Path.cwd()) for ref in refs], base and anchor_ref(base, Path.cwd()), ram_gib)


def _agreed(as_json: bool) -> bool:
    """One question for all that is open; only a person at a terminal can say yes."""
    return not as_json and sys.stdin.isatty() and typer.confirm("Go on with these questions open?", default=False, err=True)


def next_after_stop(found: Prepared, refs: list[str]) -> str:
    if found.absent:
        return f"model-merging fetch {found.absent[0]}"
    if found.recipe_id:
        return f"model-merging validate {found.recipe_id}"
    scenario = refs[0] if len(refs) == 1 else "scenario.yaml"
    return f"model-merging recommend {scenario if Path(scenario).is_file() else found.plan_id} --explain"


def next_after(out: Path, verified: Verification, measured: Evaluation | None) -> str:
    """The one command that follows: the cause of what is bad, a measurement that is missing, or the final one."""
    place = shlex.quote(str(out))
    if verified.verdict != "verified" or (measured and measured.verdict in ("adjust", "failed")):
        return f"model-merging diagnose {place}"
    if measured is None or measured.verdict == "inconclusive":
        return f"model-merging evaluate {place}"
    return f"model-merging evaluate {place} --split test"


def show_prepared(found: Prepared) -> None:
    weights = ", ".join(f"{name} {weight:.2f}" for name, weight in found.weights.items())
    line("advice", f"{found.verdict}: {found.strategy or '–'}{f' ({weights})' if weights else ''}")
    line("because", found.because)
    for warning in found.findings:
        line("found", warning)
    if found.engine:
        time = f", {found.seconds.low:.0f}–{found.seconds.high:.0f} s" if found.seconds else ""
        line("cost", f"{found.engine} engine, {size(found.peak_anon_bytes)} of memory, {size(found.disk_bytes)} of disk{time}")
    if not found.stop:
        for number, question in enumerate(found.questions, 1):
            line("open" if number == 1 else "", f"{number}. {shortened(question)}")


def show_stop(found: Gone) -> None:
    line("stopped", found.prepared.stop)
    line("next", found.next)


def show_open(found: Gone) -> None:
    line("stopped", "questions are open; answer them in a scenario (model-merging init), or go on as it is")
    line("next", found.next)


def show_gone(found: Gone, measured: Evaluation | None) -> None:
    line("output", str(found.output))
    line("verified", str(found.verification))
    for name, one in measured.capabilities.items() if measured else ():
        sources = ", ".join(f"{source} {cell(value)}" for source, value in one.sources.items())
        line("measured", f"{name} ({one.n}): base {cell(one.base)}, {sources}, merged {cell(one.merged)}")
    why = f": {measured.why[0]}" if measured and measured.why else ""
    line("verdict", f"{found.evaluation or 'not measured'}{why}")
    line("report", str(found.report))
    line("next", found.next)


def init(
    folder: Annotated[Path, typer.Argument(help="where adapters and models lie, one folder each")] = Path(),
    output: Annotated[Path, typer.Option("-o", "--output", help="scenario to write")] = Path("scenario.yaml"),
    overwrite: Overwrite = False,
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
    write_new(
        output, open_fields + yaml.safe_dump(scenario, sort_keys=False, allow_unicode=True), "scenario", overwrite=overwrite
    )
    line("next", f"model-merging go {output}")
    return 0
