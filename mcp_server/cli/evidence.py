"""compare, verify, evaluate, sweep, report: what the numbers say."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from mcp_server.cli.console import Json, emit, say_json, stderr, table
from mcp_server.cli.manners import starts_job, waits
from mcp_server.cli.merging import finish, foreground, merge_folder, output_path, result_of
from mcp_server.formats.own_data import DATA
from mcp_server.formats.refs import anchor_whole
from mcp_server.formats.suites import SIDECAR, TEXTS
from mcp_server.schemas.comparison import Comparison, PairRelation
from mcp_server.schemas.evidence import Evaluation, ReportResult, Sweep, Verification
from mcp_server.schemas.job import CompareRequest, EvaluateRequest, JobRequest, SweepRequest, VerifyRequest
from mcp_server.steps.handles import PLAN_ID, plan_file
from mcp_server.steps.report import write_report
from mcp_server.steps.report.gather import HOW
from mcp_server.system.outputs import is_json_with, require_file, write_own
from mcp_server.system.paths import expanded
from mcp_server.system.policy import for_person
from mcp_server.system.settings import load

EXIT_OF_VERIFICATION = {"verified": 0, "failed": 1, "unreadable": 2, "inconclusive": 3}
EXIT_OF_EVALUATION = {"passed": 0, "adjust": 1, "failed": 1, "inconclusive": 3}


COMPARISON = is_json_with("base", "sources", "layers", "tensors"), "a comparison"
EVALUATION = is_json_with("capabilities", "verdict"), "an evaluation"
"""How a file that -o may replace is recognised, and what it is called."""


def register(app: typer.Typer) -> None:
    for command in (compare, verify, evaluate, sweep, report):
        app.command()(command)


def run_job(request: JobRequest, *, quiet: bool) -> dict[str, Any]:
    """Run a worker in the foreground and return its result."""
    ended = foreground(request, request.kind, quiet=quiet)
    if code := finish(ended):
        raise typer.Exit(code)
    return result_of(ended)


def anchored_pair(text: str) -> tuple[str, str]:
    """`NAME=REF`; a ref alone is called after its folder."""
    name, sign, ref = text.partition("=")
    return (name, anchor_whole(ref)) if sign else (Path(text.rpartition("+")[2]).name, anchor_whole(text))


def anchored_suite(name: str) -> str:
    """A suite's folder, or a file of text or data; a suite's name, or a task of lm-eval, stays."""
    path = expanded(name)
    named = name.endswith((*TEXTS, *DATA)) or path.joinpath(SIDECAR).is_file()
    return str(path.resolve()) if named else name


PAIR_COLUMNS = ("pair", "cosine", "signs differ", "norm ratio", "top overlap")


def _pair_row(pair: PairRelation) -> list[object]:
    return [" ~ ".join(pair.between), pair.cosine, pair.sign_disagreement, pair.norm_ratio, pair.top_overlap]


@starts_job
def compare(
    base: Annotated[str, typer.Argument(help="the base model")],
    refs: Annotated[list[str], typer.Argument(help="fine-tunes or adapters of it")],
    sample: Annotated[bool, typer.Option(help="a quick look at a part of every tensor")] = False,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="also write every tensor and layer here, such as OUT/comparison.json")
    ] = None,
    json: Json = False,
) -> int:
    """Cosine, sign agreement and norm ratio of the sources' task vectors. Facts for a plan; none of them can clear a merge."""
    import json as encoder

    parameters = {"base": anchor_whole(base), "refs": [anchor_whole(ref) for ref in refs], "sample": sample}
    if output is not None:
        waits("--output")
        for_person(load()).check_write(output)
        require_file(output, *COMPARISON)
    result = run_job(CompareRequest.of(parameters), quiet=json)
    if output is not None:
        write_own(output, Path(result["path"]).read_text(encoding="utf-8"), *COMPARISON)
    if json:
        say_json(encoder.dumps(result, ensure_ascii=False, indent=2))
        return 0
    show_comparison(Comparison.model_validate(result), output)
    return 0


def show_comparison(found: Comparison, output: Path | None = None) -> None:
    table("Sources", ("source", "norm", "relative norm", "changed"), [[*s.model_dump().values()] for s in found.sources])
    table("Pairs", PAIR_COLUMNS, [_pair_row(pair) for pair in found.pairs])
    if found.layers:
        table("Layers that stand out", ("layer", *PAIR_COLUMNS), [[layer.layer, *_pair_row(layer)] for layer in found.layers])
    stderr.print(f"everything: {output or found.path}", markup=False, soft_wrap=True)


@starts_job
def verify(
    out: Annotated[Path, typer.Argument(help="a merged model or adapter, or a job's id")],
    full: Annotated[bool, typer.Option(help="compute every value again, not a sample of each tensor")] = False,
    recipe: Annotated[Path | None, typer.Option(help="recipe, when the folder holds none")] = None,
    base: Annotated[str | None, typer.Option(help="the base, for a merge from elsewhere or a base that was moved")] = None,
    source: Annotated[list[str] | None, typer.Option(help="a source: model, BASE+ADAPTER or adapter; repeat, in order")] = None,
    json: Json = False,
) -> int:
    """Whether a merge is what its recipe says: structure, every tensor computed again, provenance, loading."""
    parameters = {
        "out": str(merge_folder(out)),
        "full": full,
        "recipe": recipe and str(recipe.resolve()),
        "base": anchor_whole(base) if base else None,
        "sources": [anchor_whole(ref) for ref in source or []],
    }
    found = Verification.model_validate(run_job(VerifyRequest.of(parameters), quiet=json))
    emit(found, json, lambda: show_verification(found))
    return EXIT_OF_VERIFICATION[found.verdict]


def show_verification(found: Verification) -> None:
    mark = {True: "passed", False: "FAILED", None: "unknown"}
    table("Verification", ("check", "", "detail"), [(c.name, mark[c.passed], c.detail) for c in found.checks])
    for name, share in found.landed.items():
        loss = found.rounding_loss.get(name)
        lost = "" if loss is None else f", {loss:.1%} of its energy lost in rounding"
        stderr.print(
            f"delta of {name}: {'unknown' if share is None else f'{share:.2f}'} landed{lost}", markup=False, soft_wrap=True
        )
    stderr.print(found.verdict, style="bold")


@starts_job
def evaluate(
    out: Annotated[
        Path | None, typer.Argument(help="a merged model, or a GGUF; left out: measure base and sources alone, before a merge")
    ] = None,
    suite: Annotated[list[str] | None, typer.Option(help="suite, lm-eval task, .txt or .jsonl file; repeat for more")] = None,
    data: Annotated[list[str] | None, typer.Option(help="your own .jsonl: prompt and expected a line; repeat for more")] = None,
    against: Annotated[list[str] | None, typer.Option(help="NAME=REF of base or a source; default: from the provenance")] = None,
    gguf: Annotated[list[str] | None, typer.Option(help="an export of it, file or folder, to hold beside it; repeat")] = None,
    cross: Annotated[bool, typer.Option(help="each source alone on the others' prompts")] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="only the first N prompts of every suite")] = None,
    quick: Annotated[bool, typer.Option(help="each suite's own small number of prompts")] = False,
    split: Annotated[
        Literal["dev", "test"] | None, typer.Option(help="default: dev while you choose; test once, for the report")
    ] = None,
    endpoint: Annotated[
        str | None, typer.Option(help="OpenAI-compatible server of the models: http://HOST:PORT/v1 or its chat URL")
    ] = None,
    served: Annotated[list[str] | None, typer.Option(help="LABEL=NAME of a model at the endpoint; repeat for more")] = None,
    tokenizer: Annotated[str | None, typer.Option(help="folder of the tokenizer, for an endpoint")] = None,
    suite_folder: Annotated[list[str] | None, typer.Option(help="folder with suites of your own; repeat for more")] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="also write the result here")] = None,
    json: Json = False,
) -> int:
    """Measure a merge against its sources and its base, capability by capability."""
    parameters: dict[str, Any] = {
        "out": out and str(merge_folder(out)),
        "suites": [anchored_suite(name) for name in suite or []],
        "data": [str(expanded(file).resolve()) for file in data or []],
        "against": dict(anchored_pair(pair) for pair in against or []),
        "gguf": [str(expanded(file).absolute()) for file in gguf or []],
        "cross": cross,
        "limit": limit,
        "quick": quick,
        "split": split,
        "suite_folders": [str(Path(folder).resolve()) for folder in suite_folder or []],
    }
    if endpoint:
        names = dict(pair.partition("=")[::2] for pair in served or [])
        parameters |= {
            "backend": "openai",
            "endpoint": endpoint,
            "served": names,
            "tokenizer": tokenizer and anchor_whole(tokenizer),
        }
    if output is not None:
        waits("--output")
        for_person(load()).check_write(output)
        require_file(output, *EVALUATION)
    found = Evaluation.model_validate(run_job(EvaluateRequest.of(parameters), quiet=json))
    if output is not None:
        write_own(output, found.model_dump_json(indent=1) + "\n", *EVALUATION)
    emit(found, json, lambda: show_evaluation(found))
    return EXIT_OF_EVALUATION[found.verdict]


def show_evaluation(found: Evaluation) -> None:
    names = list(dict.fromkeys(name for c in found.capabilities.values() for name in c.sources))
    rows = [
        (
            f"{label}: {c.metric.replace('_', ' ')}",
            c.n,
            c.base,
            *(c.sources.get(n) for n in names),
            c.merged,
            c.retention,
            c.gain_recovered,
        )
        for label, c in found.capabilities.items()
    ]
    columns = ("capability", "n", "base", *names, "merged", "retention", "gain recovered")
    table("Evaluation", columns, rows, right=range(1, len(columns)))
    lost = [
        (name, label, c.merged, one.figure, one.change, one.same_replies)
        for name, c in found.capabilities.items()
        for label, one in c.exports.items()
    ]
    if lost:
        table("What the export costs", ("capability", "export", "merged", "export's", "change", "same replies"), lost)
    if found.cross_context:
        contexts = list(dict.fromkeys(c for row in found.cross_context.values() for c in row))
        cross = [(name, *(row.get(c) for c in contexts)) for name, row in found.cross_context.items()]
        table("Breaks into its own behaviour in foreign contexts (rate)", ("source", *contexts), cross)
    for suite, by in found.tables.items():
        chosen = list(dict.fromkeys(name for counts in by.values() for row in counts.values() for name in row))
        confusion = [
            (label, wanted, *(row.get(c, 0) for c in chosen)) for label, counts in by.items() for wanted, row in counts.items()
        ]
        table(f"{suite}: what was wanted, what was chosen", ("model", "wanted", *chosen), confusion)
    for line in [*found.why, *found.notes]:
        stderr.print(line, markup=False, soft_wrap=True)
    stderr.print(found.verdict, style="bold")
    if found.next:
        stderr.print(f"next: {found.next}", markup=False, soft_wrap=True)


@starts_job
def sweep(
    plan: Annotated[Path, typer.Argument(help="plan YAML, or a plan's id")],
    out: Annotated[Path, typer.Argument(help="folder for the table and the winner")],
    suite: Annotated[list[str] | None, typer.Option(help="suite, lm-eval task, .txt or .jsonl file; repeat for more")] = None,
    data: Annotated[list[str] | None, typer.Option(help="your own .jsonl: prompt and expected a line; repeat for more")] = None,
    grid: Annotated[list[str] | None, typer.Option(help="KEY=V1,V2,… ; default: the plan's shortlist")] = None,
    try_: Annotated[list[str] | None, typer.Option("--try", help="one candidate: 'KEY=VALUE KEY=VALUE'; repeat for more")] = None,
    minutes: Annotated[
        float | None, typer.Option(help="search for so long, begun with the shortlist (or the grid), and take the best")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="prompts per suite for the full measurement")] = None,
    quick_limit: Annotated[int, typer.Option(min=1, help="prompts per suite for the first look at every candidate")] = 20,
    workers: Annotated[int, typer.Option(min=1, help="candidates at once on this machine")] = 1,
    ray: Annotated[str | None, typer.Option(help="address of a Ray cluster (extra: ray)")] = None,
    cpus: Annotated[float, typer.Option(min=0.1, help="on Ray: processors that a task declares")] = 1,
    memory_gib: Annotated[float, typer.Option(min=0.1, help="on Ray: memory that a task declares")] = 2,
    gpus: Annotated[float, typer.Option(min=0, help="on Ray: GPUs that a task declares")] = 0,
    seed: Annotated[int, typer.Option(help="of every merge")] = 0,
    json: Json = False,
) -> int:
    """Merge and evaluate several candidates, choose on the dev split, report once on the test split."""
    parameters = {
        "plan": str(plan_file(str(plan)) if PLAN_ID.fullmatch(str(plan)) else plan.resolve()),
        "out": str(output_path(out)),
        "suites": [anchored_suite(name) for name in suite or []],
        "data": [str(expanded(file).resolve()) for file in data or []],
        "grid": grid or [],
        "tries": try_ or [],
        "minutes": minutes,
        "limit": limit,
        "quick_limit": quick_limit,
        "workers": workers,
        "ray": ray,
        "cpus": cpus,
        "memory_gib": memory_gib,
        "gpus": gpus,
        "seed": seed,
    }
    found = Sweep.model_validate(run_job(SweepRequest.of(parameters), quiet=json))
    emit(found, json, lambda: show_sweep(found))
    return 0 if found.winner else 1


def show_sweep(found: Sweep) -> None:
    names = list(dict.fromkeys(name for candidate in found.candidates for name in candidate.scores))
    rows = [
        (
            f"{'→ ' if c.name == found.winner else ''}{c.name}{' *' if c.pareto else ''}",
            *(c.scores.get(name) for name in names),
            c.perplexity_ratio,
            c.verdict,
            c.stopped,
        )
        for c in found.candidates
    ]
    columns = ("candidate", *names, "perplexity ratio", "verdict", "stopped")
    table("Candidates on the dev split (* nothing is better in every capability)", columns, rows)
    for note in (f"winner: {found.winner or 'none'}. {found.why}", *found.notes):
        stderr.print(note, markup=False, soft_wrap=True)
    if found.test:
        show_evaluation(found.test)
    for what in ("recipe", "model", ""):
        if path := getattr(found, f"{what}_path".strip("_")):
            stderr.print(f"{what or 'everything'}: {path}", markup=False, soft_wrap=True)


def report(
    out: Annotated[Path, typer.Argument(help="a merged model with its evidence, or a job's id")],
    output: Annotated[Path | None, typer.Option("-o", "--output", help="default: OUT/report.html")] = None,
    json: Json = False,
) -> int:
    """One self-contained HTML page: rationale, sources, recipe, verification, evaluation."""
    folder = merge_folder(out)
    where = (output or folder / "report.html").absolute()
    for_person(load()).check_write(where)
    written = write_report(folder, where)
    emit(written, json, lambda: show_report(written))
    return 0


def show_report(written: ReportResult) -> None:
    """Where the page is, and what it shows that is not of the weights in the folder."""
    stderr.print(f"wrote {written.html}", markup=False, soft_wrap=True)
    for part, current in written.current.items():
        if current is False:
            again = HOW["verification" if part == "verification" else "evaluation"]
            said = f"{part}: of other weights than lie there now; run `{again}` again, then report"
            stderr.print(said, markup=False, soft_wrap=True)
    for reason in written.left_out:
        stderr.print(f"left out {reason}", markup=False, soft_wrap=True)
