"""Merging from Python, such as at the end of a training script: the same steps as the command line, with values in and out.

    from mcp_server import api

    found = api.inspect("base", "run/checkpoint-400")        # what they are, whether they can be merged
    result = api.merge(recipe, "merged")                      # a recipe as a table, YAML text or a path
    assert api.verify("merged").verdict == "verified"
    api.extract("base", "run/full-fine-tune", "adapter", rank=64)

`inspect`, `validate` and `estimate` read headers in this process. `merge`, `extract` and `verify` run as jobs in processes of
their own: what this process holds in memory or on a GPU is not touched, and a job can be resumed. They return when it is over.
Everything that goes wrong is a `mcp_server.errors.MergingError`: `message` says what was found, `next_step` what to do.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal

import yaml

from mcp_server import jobs
from mcp_server.errors import MergingError, from_dict
from mcp_server.formats.refs import anchor_whole
from mcp_server.schemas.base import Engine, OutputFormat, Space
from mcp_server.schemas.estimate import Estimate
from mcp_server.schemas.evidence import Verification
from mcp_server.schemas.inspect import Inspection
from mcp_server.schemas.job import JobStatus, MergeRequest, MergeResult, VerifyRequest
from mcp_server.schemas.validation import Validation
from mcp_server.steps.estimate import estimate as estimated
from mcp_server.steps.extract import extraction
from mcp_server.steps.inspect import inspect_models
from mcp_server.steps.sweep.ahead import with_sweep
from mcp_server.steps.validate import validate as validated
from mcp_server.system.yaml_io import read_text

__all__ = ["MergingError", "estimate", "extract", "inspect", "merge", "validate", "verify"]

Recipe = str | os.PathLike[str] | dict[str, Any]
"""A mergekit recipe: a table, YAML text (more than one line, or with a colon), or a path. A path's own folder is where its
relative refs start; those of tables and texts start at the current folder."""
Progress = Callable[[JobStatus], None]


def inspect(*refs: str | os.PathLike[str], base: str | os.PathLike[str] | None = None) -> Inspection:
    """What models and adapters are, and whether they can be merged with each other. Reads headers only."""
    return inspect_models([os.fspath(ref) for ref in refs], base=os.fspath(base) if base is not None else None)


def validate(recipe: Recipe, *, ram_gib: float | None = None, output_format: OutputFormat | None = None) -> Validation:
    """The linter's findings; `ok` is false exactly when one of them is an error. The options are those of `merge`."""
    text, folder = _recipe(recipe)
    return validated(text, folder=folder, ram_gib=ram_gib, output_format=output_format)


def estimate(
    recipe: Recipe,
    *,
    output: Literal["model", "adapter"] = "model",
    output_format: OutputFormat | None = None,
    rank: int | None = None,
    space: Space = "weights",
    ram_gib: float | None = None,
) -> Estimate:
    """Memory, disk and time of every engine that can do it, and whether that fits. The options are those of `merge`."""
    text, folder = _recipe(recipe)
    form: dict[str, Any] = {"output": output, "output_format": output_format, "rank": rank, "space": space}
    return with_sweep(estimated(text, folder=folder, ram_gib=ram_gib, **form), text)


def merge(
    recipe: Recipe,
    out: str | os.PathLike[str],
    *,
    engine: Engine = "auto",
    output: Literal["model", "adapter"] = "model",
    output_format: OutputFormat | None = None,
    rank: int | None = None,
    space: Space = "weights",
    ram_gib: float | None = None,
    seed: int | None = None,
    threads: int | None = None,
    overwrite: bool = False,
    on_progress: Progress | None = None,
) -> MergeResult:
    """Merge into the folder `out`, which appears only when it is whole. `on_progress` is called with the job's status.

    Raises a `MergingError` before anything is written for a recipe that is wrong, does not fit, or whose output is there.
    """
    text, folder = _recipe(recipe)
    fields: dict[str, Any] = {"recipe": text, "engine": engine, "output": output, "output_format": output_format}
    fields |= {"rank": rank, "space": space, "ram_gib": ram_gib, "seed": seed}
    return _merged(fields, folder, out, threads, overwrite, on_progress)


def extract(
    base: str | os.PathLike[str],
    finetune: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    rank: int = 64,
    whole: Iterable[Literal["embeddings", "norms", "biases"]] = (),
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16",
    threads: int | None = None,
    overwrite: bool = False,
    on_progress: Progress | None = None,
) -> MergeResult:
    """Write what a full fine-tune (or a merge) changed as a LoRA adapter; `relative_error` says what the rank left out."""
    fields = extraction(os.fspath(base), os.fspath(finetune), rank=rank, whole=list(whole), dtype=dtype)
    return _merged(fields, Path.cwd(), out, threads, overwrite, on_progress)


def verify(
    out: str | os.PathLike[str],
    *,
    full: bool = False,
    base: str | os.PathLike[str] | None = None,
    sources: Iterable[str | os.PathLike[str]] = (),
    on_progress: Progress | None = None,
) -> Verification:
    """Whether a merge is what its recipe says: `verdict` is verified, failed, unreadable or inconclusive.

    `base` and `sources` are for a merge from elsewhere, or models that were moved; `full` computes every value again.
    """
    fields = {
        "out": str(Path(out).resolve()),
        "full": full,
        "base": anchor_whole(os.fspath(base)) if base is not None else None,
        "sources": [anchor_whole(os.fspath(source)) for source in sources],
    }
    return Verification.model_validate(_ended(jobs.start(VerifyRequest.of(fields)), on_progress))


def _recipe(recipe: Recipe) -> tuple[str, Path]:
    """A recipe's text, and the folder that its relative refs start from."""
    if isinstance(recipe, dict):
        return yaml.safe_dump(recipe, sort_keys=False), Path.cwd()
    if isinstance(recipe, str) and ("\n" in recipe or ":" in recipe) and not Path(recipe).is_file():
        return recipe, Path.cwd()
    path = Path(recipe)
    return read_text(path, "the recipe"), path.resolve().parent


def _merged(
    fields: dict[str, Any],
    folder: Path,
    out: str | os.PathLike[str],
    threads: int | None,
    overwrite: bool,
    on_progress: Progress | None,
) -> MergeResult:
    place = {"recipe_folder": str(folder), "out": str(Path(out).resolve()), "threads": threads, "overwrite": overwrite}
    return MergeResult.model_validate(_ended(jobs.start_merge(MergeRequest.of(fields | place)), on_progress))


def _ended(started: JobStatus, on_progress: Progress | None) -> dict[str, Any]:
    """The result of a job that succeeded. Ctrl-C stops it so that it can be resumed, and is raised again."""
    status = jobs.follow(started.job_id, on_progress=on_progress)
    if status.state == "interrupted":
        raise KeyboardInterrupt
    if status.state != "succeeded" or status.result is None:
        said = {"message": f"job {status.job_id} ended as {status.state}", "next_step": status.next_step}
        raise from_dict(status.error or said)
    return status.result
