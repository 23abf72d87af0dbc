"""merge and the commands that serve every kind of job."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import BaseModel, ValidationError

from mcp_server import jobs as store
from mcp_server.cli.console import Json, cell, emit, progress_of, say, size, stderr, table
from mcp_server.cli.knowledge import read_text
from mcp_server.cli.manners import Detached, detaching, starts_job
from mcp_server.errors import BadInput, Malformed, RunFailed, from_dict
from mcp_server.schemas.comparison import Comparison
from mcp_server.schemas.evidence import Evaluation, Sweep, Verification
from mcp_server.schemas.export import Exported
from mcp_server.schemas.faults import first_fault
from mcp_server.schemas.hub import Fetched, MadeBase, Published
from mcp_server.schemas.job import JobRequest, JobStatus, MergeRequest, MergeResult
from mcp_server.schemas.replies import Answers
from mcp_server.steps.extract import extraction
from mcp_server.system.paths import expanded

EXIT_INTERRUPTED = 130


def register(app: typer.Typer) -> None:
    app.command()(merge)
    app.command()(extract)
    app.command("jobs")(list_jobs)
    for command in (status, logs, cancel, resume):
        app.command()(command)


def merge_folder(out: Path) -> Path:
    """A merge's folder, by path or by the id of a job about it."""
    return store.output_of(str(out)) or out.resolve()


def output_path(out: Path) -> Path:
    """The whole path of an output. A link at its end is not followed, so that it is refused and what it leads to stays."""
    path = expanded(out).absolute()
    return path.resolve() if path.name in ("", "..") else path.parent.resolve() / path.name


def finish(status: JobStatus) -> int:
    """The exit code of a job that has been waited for; its failure is raised in our words."""
    if status.state == "succeeded":
        return 0
    if status.state == "interrupted":
        stderr.print(f"interrupted; go on with: model-merging resume {status.job_id}", markup=False, soft_wrap=True)
        return EXIT_INTERRUPTED
    raise from_dict(status.error or {"message": f"job {status.job_id} ended as {status.state}", "next_step": status.next_step})


RESULTS: dict[str, type[BaseModel]] = {
    "merge": MergeResult, "compare": Comparison, "verify": Verification, "evaluate": Evaluation, "sweep": Sweep, "fetch": Fetched,
    "prepare": MadeBase, "ask": Answers, "export": Exported, "publish": Published,
}  # fmt: skip
"""Kind of job → its result model."""


def result_of(ended: JobStatus) -> dict[str, Any]:
    """What a job that succeeded found. Raises `RunFailed` when its file cannot be read, `Malformed` when it is damaged."""
    place = Path(ended.log_path).with_name("result.json")
    if ended.result is None:
        raise RunFailed(f"the job succeeded, but its result {place} cannot be read", f"see model-merging logs {ended.job_id}")
    try:
        RESULTS[ended.kind].model_validate(ended.result)
    except ValidationError as error:
        raise Malformed(f"{place} is damaged: {first_fault(error, RESULTS[ended.kind])}", "run the command again") from error
    return ended.result


def foreground(request: JobRequest | MergeRequest, title: str, *, quiet: bool = False) -> JobStatus:
    """Start a job, follow it with a progress bar and return how it ended. Ctrl-C at any moment leaves it resumable."""
    return followed(
        lambda: store.start_merge(request) if isinstance(request, MergeRequest) else store.start(request), title, quiet=quiet
    )


def followed(begin: Callable[[], JobStatus], title: str, *, quiet: bool) -> JobStatus:
    started: JobStatus | None = None
    try:
        with interrupts_held():
            started = begin()
        if started.takes and not quiet:
            about = "" if started.takes.startswith("weights") else "about "
            stderr.print(f"{title}: {about}{started.takes}", markup=False, soft_wrap=True)
        if detaching():
            raise Detached(started)
        with progress_of(title, quiet=quiet) as follow:
            return store.follow(started.job_id, on_progress=follow)
    except KeyboardInterrupt:
        if started is None:
            raise
        return store.interrupt(started.job_id)


@contextmanager
def interrupts_held() -> Iterator[None]:
    """A Ctrl-C in here is raised at the end: a job is not left half started, running unwatched with nobody told its name."""
    came: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: came.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if came:
        raise KeyboardInterrupt


@starts_job
def merge(
    recipe: Annotated[Path, typer.Argument(help="recipe YAML")],
    out: Annotated[Path, typer.Argument(help="folder to write; must not exist")],
    engine: Annotated[str, typer.Option(help="auto, stream or mergekit")] = "auto",
    output: Annotated[str, typer.Option(help="model, or adapter: LoRAs of one base become one LoRA")] = "model",
    output_format: Annotated[
        str | None, typer.Option(help="fp8: store it as an FP8 model of the recipe is stored; unchanged blocks keep its bytes")
    ] = None,
    rank: Annotated[int | None, typer.Option(help="rank of an adapter made by truncated SVD")] = None,
    space: Annotated[
        str,
        typer.Option(help="of an adapter: merge on the weights, on the core of the factors, or on a shared subspace of the rank"),
    ] = "weights",
    ram_gib: Annotated[float | None, typer.Option(help="memory that the merge may use")] = None,
    seed: Annotated[int | None, typer.Option(help="for DARE and DELLA; recorded in any case")] = None,
    threads: Annotated[int | None, typer.Option(help="worker threads; the result does not depend on them")] = None,
    workers: Annotated[int, typer.Option(help="processes that write output files at once")] = 1,
    ray: Annotated[str | None, typer.Option(help="address of a Ray cluster: each output file is a task (extra: ray)")] = None,
    shard_size: Annotated[str, typer.Option(help="largest output file, such as 500MB or 5GB")] = "5GB",
    allow_nonfinite: Annotated[bool, typer.Option(help="go on when a source holds NaN or infinity")] = False,
    hash_: Annotated[str, typer.Option("--hash", help="headers, or full: SHA-256 of every input")] = "headers",
    overwrite: Annotated[bool, typer.Option(help="replace the output folder")] = False,
    json: Json = False,
) -> int:
    """Run a recipe as a background job; the output appears only when it is whole."""
    request = MergeRequest.of(
        {
            "recipe": read_text(recipe, "recipe"),
            "recipe_folder": str(recipe.resolve().parent),
            "out": str(output_path(out)),
            "engine": engine,
            "output": output,
            "output_format": output_format,
            "rank": rank,
            "space": space,
            "ram_gib": ram_gib,
            "seed": seed,
            "threads": threads,
            "workers": workers,
            "ray": ray,
            "shard_size": parse_size(shard_size),
            "overwrite": overwrite,
            "allow_nonfinite": allow_nonfinite,
            "hash": hash_,
        }
    )
    ended = foreground(request, "merge", quiet=json)
    if code := finish(ended):
        return code
    result = MergeResult.model_validate(result_of(ended))
    emit(result, json, lambda: show_merge(result))
    return 0


@starts_job
def extract(
    base: Annotated[str, typer.Argument(help="the model that the fine-tune began from: a folder or a cached hub id")],
    finetune: Annotated[str, typer.Argument(help="the full fine-tune, or a merge")],
    out: Annotated[Path, typer.Argument(help="folder to write; must not exist")],
    rank: Annotated[int, typer.Option(help="rank of the factors of every matrix")] = 64,
    whole: Annotated[list[str] | None, typer.Option(help="store changed embeddings, norms or biases whole; repeat it")] = None,
    dtype: Annotated[str, typer.Option(help="bfloat16, float16 or float32")] = "bfloat16",
    threads: Annotated[int | None, typer.Option(help="worker threads; the result does not depend on them")] = None,
    overwrite: Annotated[bool, typer.Option(help="replace the output folder")] = False,
    json: Json = False,
) -> int:
    """Write what a full fine-tune changed as a LoRA adapter: a truncated SVD of every matrix's change, with its error."""
    request = MergeRequest.of(
        extraction(base, finetune, rank=rank, whole=whole or [], dtype=dtype)
        | {"recipe_folder": str(Path.cwd()), "out": str(output_path(out)), "threads": threads, "overwrite": overwrite}
    )
    ended = foreground(request, "extract", quiet=json)
    if code := finish(ended):
        return code
    result = MergeResult.model_validate(result_of(ended))
    emit(result, json, lambda: show_merge(result))
    return 0


def parse_size(text: str) -> int:
    """Bytes of '5GB', '500MB' or '1000000'."""
    units = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "B": 1}
    number = text.strip().upper()
    unit = next((u for u in sorted(units, key=len, reverse=True) if number.endswith(u)), "")
    try:
        value = float(number.removesuffix(unit)) * units.get(unit, 1)
    except ValueError:
        value = 0
    if not value >= 1:
        raise BadInput(f"{text!r} is not a size", "write it as 500MB, 5GB or a number of bytes")
    return int(value)


def show_merge(result: MergeResult) -> None:
    rows: list[tuple[str, object]] = [
        ("output", result.output),
        ("engine", result.engine),
        ("time", f"{result.wall_seconds:.1f} s"),
        ("peak memory", size(result.peak_anon_bytes)),
        ("written", size(result.bytes)),
        ("seed", result.seed),
    ]
    rows += [(f"delta of {name} landed", value) for name, value in result.landed.items()]
    rows += [(f"delta of {name} lost in rounding", value) for name, value in result.rounding_loss.items()]
    rows += [("relative error", result.relative_error)] if result.relative_error is not None else []
    rows += [("warning", warning) for warning in result.warnings]
    table("Merged", ("", ""), rows)


def list_jobs(
    prune: Annotated[bool, typer.Option(help="remove finished jobs' folders (never outputs)")] = False,
    limit: Annotated[int, typer.Option(min=1)] = 20,
    offset: Annotated[int, typer.Option(min=0)] = 0,
    json: Json = False,
) -> int:
    """Jobs of this store, newest first."""
    if prune:
        removed = store.prune()
        stderr.print(f"removed {removed} finished jobs", markup=False, soft_wrap=True)
    found = store.list_jobs(offset=offset, limit=limit)
    rows = [(j.job_id, j.state, j.about, j.output and Path(j.output).name) for j in found.jobs]
    emit(found, json, lambda: table(f"Jobs ({found.total})", ("job", "state", "about", "output"), rows, whole=(0,)))
    return 0


def show_status(job: JobStatus) -> None:
    rows: list[tuple[str, object]] = [
        (name, getattr(job, name)) for name in ("kind", "state", "about", "engine", "output") if getattr(job, name)
    ]
    if job.progress:
        rows.append(
            ("progress", f"{job.progress.stage} {cell(job.progress.done)}/{cell(job.progress.total)} {job.progress.unit}")
        )
    if job.error:
        rows.append(("error", job.error.get("message")))
    rows += [("log", job.log_path), ("next", job.next_step)]
    table(job.job_id, ("", ""), rows)


def status(
    job_id: Annotated[str, typer.Argument()],
    json: Json = False,
) -> int:
    """State and progress of a job."""
    found = store.status(job_id)
    emit(found, json, lambda: show_status(found))
    return 0


def logs(
    job_id: Annotated[str, typer.Argument()],
    offset: Annotated[int, typer.Option(min=0)] = 0,
    json: Json = False,
) -> int:
    """What the worker printed."""
    page = store.logs(job_id, offset=offset)
    emit(page, json, lambda: say(page.text))
    return 0


def cancel(
    job_id: Annotated[str, typer.Argument()],
    keep: Annotated[bool, typer.Option(help="keep the partial output")] = False,
    json: Json = False,
) -> int:
    """End a job and remove its partial output."""
    ended = store.cancel(job_id, keep=keep)
    emit(ended, json, lambda: show_status(ended))
    return 0


@starts_job
def resume(
    job_id: Annotated[str, typer.Argument()],
    json: Json = False,
) -> int:
    """Go on with an interrupted or failed job."""
    resumed = followed(lambda: store.resume(job_id), job_id.partition("-")[0], quiet=json)
    code = finish(resumed)
    emit(resumed, json, lambda: show_status(resumed))
    return code
