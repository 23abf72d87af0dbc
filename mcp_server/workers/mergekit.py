"""The reference engine: a recipe run by mergekit itself, as a subprocess of the same environment.

Worker inputs   request.json parameters: a `MergeRequest` with absolute paths, `partial` (the folder to write) and `job_id`
Worker outputs  the folder `partial`: weights, config, tokenizer, mergekit_config.yml, merge_provenance.json, README.md;
                result.json: what the runner completes to a `MergeResult`

`mergekit-moe` and `mergekit-multi` recipes run here too. Adapters are folded by our own pass (`folding`), never by mergekit's
cache, which is keyed by path and stays broken when it is interrupted.

Not covered: resuming (it starts again), counting what landed (verify reads the weights), pickle checkpoints (refused).
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mcp_server.errors import InputChanged, RunFailed, Unsupported
from mcp_server.formats.checkpoint import open_checkpoint
from mcp_server.formats.lineage import source_records
from mcp_server.formats.provenance import Provenance, SourceRecord, identify, write_model_card, write_provenance
from mcp_server.formats.recipe import ModelRef, Recipe, keeps_ties, read_recipe
from mcp_server.formats.recipe.rewrite import rewrite_refs
from mcp_server.formats.safetensors import read_header
from mcp_server.schemas.job import MergeRequest
from mcp_server.system.files import tree_bytes, write_text
from mcp_server.system.hashes import stamp
from mcp_server.workers import mergekit_output, mergekit_process
from mcp_server.workers.hub_sources import with_sources
from mcp_server.workers.mergekit_experts import store_one_by_one
from mcp_server.workers.protocol import Job, online, run_worker

_STAGES = ".stages"
_SCRIPT = {"merge": "mergekit-yaml", "moe": "mergekit-moe", "multi": "mergekit-multi"}


def main(job: Job) -> dict[str, Any]:
    request = MergeRequest.model_validate({k: v for k, v in job.parameters.items() if k in MergeRequest.model_fields})
    partial = Path(job.parameters["partial"])
    if online():
        request = request.model_copy(update={"recipe": with_sources(job, request.recipe)})
    recipe = read_recipe(request.recipe)
    sources = _identify(recipe, request.hash)
    stamps = _stamps(sources)
    text = rewrite_refs(request.recipe, _folder(job, recipe))
    write_text(job.folder / "recipe.yml", text)
    transcript = mergekit_process.run(job, _command(job, recipe, request, partial))
    _require_unchanged(stamps)
    shutil.rmtree(partial / _STAGES, ignore_errors=True)
    _check(partial, job.folder / "log.txt")
    if recipe.kind == "moe" or any(stage.kind == "moe" for stage in recipe.stages):
        store_one_by_one(partial)
    tensors = sum(len(read_header(path).tensors) for path in partial.glob("*.safetensors"))
    digests = mergekit_output.finish(read_recipe(text), partial, allow_nonfinite=request.allow_nonfinite)
    warnings = _warnings(transcript.warnings, partial)
    record = Provenance(
        created=datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        job_id=str(job.parameters.get("job_id", "")),
        product=f"model-merging {version('model-merging')}",
        engine="mergekit",
        engine_version=f"mergekit {version('mergekit')}",
        method=recipe.method or recipe.kind,
        recipe=request.recipe,
        settings={"dtype": recipe.out_precision, "shard_size": request.shard_size, "threads": request.threads},
        seed=request.seed,
        sources=sources,
        output=identify(partial, request.hash),
        digests=digests,
        warnings=warnings,
    )
    write_provenance(partial, record)
    write_model_card(partial, record, name=Path(request.out).name)
    return {"seed": request.seed, "tensors": tensors, "bytes": tree_bytes(partial), "warnings": warnings}


def _command(job: Job, recipe: Recipe, request: MergeRequest, partial: Path) -> list[str]:
    config = str(job.folder / "recipe.yml")
    arguments = mergekit_process.command(_SCRIPT[recipe.kind])
    if recipe.kind == "multi":
        intermediate = partial / _STAGES
        arguments += [config, "--out-path", str(partial), "--intermediate-dir", str(intermediate), "--no-lazy"]
    else:
        arguments += [config, str(partial)]
    arguments += ["--no-write-model-card", "--safe-serialization", "--out-shard-size", str(request.shard_size)]
    if request.seed is not None:
        arguments += ["--random-seed", str(request.seed)]
    if request.threads is not None:
        arguments += ["--num-threads", str(request.threads)]
    if job.trust_remote_code:
        arguments += ["--trust-remote-code"]
    return arguments


def _folder(job: Job, recipe: Recipe) -> Callable[[ModelRef], ModelRef]:
    """Replaces `base+adapter` by the folder of the folded model."""

    def fold(ref: ModelRef) -> ModelRef:
        if ref.adapter is None:
            return ref
        from mcp_server.workers.folding import folded

        name = Path(ref.adapter).name
        target = folded(
            ref.base_ref,
            ref.adapter_ref or ref.adapter,
            lambda done, total: job.progress(f"fold {name}", done, total),
            as_merged=keeps_ties(recipe.groups(), ref),
        )
        return ModelRef(base=str(target), override_architecture=ref.override_architecture)

    return fold


def _identify(recipe: Recipe, hash: Any) -> list[SourceRecord]:
    """What goes in, before anything runs; a source that is no sound safetensors checkpoint stops the job here."""
    records = source_records(recipe, hash)
    for record in records:
        if record.role != "adapter" and record.identity is not None:
            tensors = open_checkpoint(record.ref).tensors.values()
            if packed := next((tensor.packed for tensor in tensors if tensor.packed is not None), None):
                raise Unsupported(
                    f"{record.ref} is quantised ({packed.kind}), and mergekit would average its codes as numbers",
                    "use engine 'stream', which unpacks it as it reads",
                )
    return records


def _stamps(sources: list[SourceRecord]) -> dict[Path, list[int]]:
    """Every weight file of the sources with what tells its states apart: sizes, times (the kernel's too), inode."""
    folders = [Path(record.ref.rpartition("+")[2]) for record in sources]
    return {path: stamp(path) for folder in folders if folder.is_dir() for path in sorted(folder.glob("*.safetensors"))}


def _require_unchanged(before: dict[Path, list[int]]) -> None:
    """Raise `InputChanged` when weights are no longer the files that went in: mergekit read some mixture of old and new."""
    for path, then in before.items():
        how = "removed" if not path.is_file() else "changed" if stamp(path) != then else None
        if how is not None:
            raise InputChanged(f"{path} was {how} while it was read", "resume the job to merge what is there now")


def _check(partial: Path, log: Path) -> None:
    """No weights at all are a failed run."""
    weights = sorted(partial.glob("*.safetensors"))
    if not weights or not (partial / "config.json").is_file():
        what = "no weights" if not weights else "no config.json"
        raise RunFailed(f"mergekit reported success but wrote {what}", f"see {log}")


def _warnings(said: list[str], partial: Path) -> list[str]:
    """mergekit's warnings, with the one that matters most in our words."""
    ours = []
    if not any((partial / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "tokenizer_config.json")):
        ours.append("the output has no tokenizer: the sources have none that could be copied; add one before you use the model")
        said = [line for line in said if "copy tokenizer" not in line]
    return ours + [f"mergekit: {line}" for line in said]


if __name__ == "__main__":
    sys.exit(run_worker(main))
