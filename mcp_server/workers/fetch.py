"""Downloads a model or an adapter into the local Hugging Face cache, where every other step finds it by its id.

in    request.json: kind "fetch", parameters of `FetchRequest`
out   result.json: `Fetched`

huggingface_hub resumes files that were cut short. Everything that can be known from the listing is checked before the first byte:
that there are safetensors or GGUF, that the disk holds them. Files with a SHA-256 in the listing are hashed after the download.
Of a repository with nothing but GGUF one model is fetched: the one that was named, else the most precise.

Not covered: pickle, ONNX and TensorFlow files (no merge reads them), data sets, spaces.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import httpx2 as httpx
from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub import errors as hub_errors
from huggingface_hub.hf_api import ModelInfo, RepoSibling

from mcp_server.errors import BadInput, DiskFull, Malformed, NotAllowed, NotAModel, NotFound
from mcp_server.formats.folder import GGUF_ORIGINAL
from mcp_server.formats.hub.listing import chosen_gguf, holding_of, is_wanted, models_in_gguf, original_of, require_plain
from mcp_server.formats.hub.refusals import explained, may_pass, pause_asked
from mcp_server.formats.refs import is_hub_id
from mcp_server.formats.tensors import read_json
from mcp_server.schemas.hub import Fetched
from mcp_server.schemas.job import FetchRequest
from mcp_server.system import paths
from mcp_server.system.files import write_text
from mcp_server.system.hashes import sha256_of
from mcp_server.system.repeating import repeating
from mcp_server.workers.protocol import Job, run_worker

SPARE_BYTES: Final = 200_000_000
"""Left free on the disk of the cache, so that other programs keep working."""
TRIES: Final = 5


def main(job: Job) -> Fetched:
    return fetch(FetchRequest.of(job.parameters), job)


def fetch(request: FetchRequest, job: Job) -> Fetched:
    """Fetch one repository and, for an adapter, its base. Raises our errors for whatever the hub or the disk refuses."""
    name, _, revision = request.ref.partition("@")
    if not is_hub_id(name):
        raise NotFound(f"{request.ref!r} is not a hub id", "give owner/name, or owner/name@revision")
    api = HfApi()
    with explained(name, revision or "main"):
        info = api.model_info(name, revision=revision or None, files_metadata=True)
    siblings = info.siblings or []
    names = [sibling.rfilename for sibling in siblings]
    require_plain(name, str(info.sha), names)
    kind = holding_of(name, names)
    weights = chosen_gguf(name, names, request.file) if kind == "gguf" else []
    if request.file is not None and kind != "gguf":
        raise BadInput(f"{name} holds {kind} files in safetensors, of which all are needed", "leave the name of a file out")
    wanted = [s for s in siblings if is_wanted(s.rfilename, names) or s.rfilename in weights]
    folder, downloaded = _download(name, info, wanted, job)
    base, notes = None, _notes(name, folder)
    if kind == "gguf":
        notes += _gguf_notes(info, names, weights, folder)
        folder = (folder / weights[0]).parent
    if kind == "adapter" and request.with_base:
        base, more = _base_of(name, folder, job)
        notes += more
    return Fetched(
        ref=name,
        revision=str(info.sha),
        folder=str(folder),
        kind=kind,
        files=len(wanted),
        bytes=sum(sibling.size or 0 for sibling in wanted),
        downloaded_bytes=downloaded,
        base=base,
        left_out=sorted(set(names) - {sibling.rfilename for sibling in wanted} - {".gitattributes"}),
        notes=notes,
    )


def _download(name: str, info: ModelInfo, wanted: list[RepoSibling], job: Job) -> tuple[Path, int]:
    """The snapshot folder, and the bytes that had to be transferred."""
    cache = paths.huggingface_cache()
    blobs = cache / f"models--{name.replace('/', '--')}" / "blobs"
    total = sum(sibling.size or 0 for sibling in wanted)
    missing = [s for s in wanted if not (blobs / _blob(s)).is_file()]
    needed = sum(s.size or 0 for s in missing) - sum(p.stat().st_size for p in blobs.glob("*.incomplete"))
    _check_disk(cache, needed, name)
    done = total - sum(s.size or 0 for s in missing)
    folder: Path | None = None
    began = time.monotonic()
    with _watched(blobs, job, lambda: done, total, began):
        for sibling in sorted(wanted, key=lambda s: s.size or 0):
            fresh = sibling in missing
            with explained(name, str(info.sha)):
                path = Path(_with_retries(name, sibling.rfilename, str(info.sha)))
            if fresh:
                _check_hash(path, sibling, name)
                done += sibling.size or 0
            folder = Path(*path.parts[: len(path.parts) - len(Path(sibling.rfilename).parts)])
    assert folder is not None, "a repository with weights has files"
    _remember_branch(folder, info)
    return folder, sum(s.size or 0 for s in missing)


def _blob(sibling: RepoSibling) -> str:
    return str(sibling.lfs.sha256 if sibling.lfs else sibling.blob_id)


def _check_disk(cache: Path, needed: int, name: str) -> None:
    place = next(p for p in (cache, *cache.parents) if p.exists())
    free = shutil.disk_usage(place).free
    if needed + SPARE_BYTES > free:
        raise DiskFull(
            f"{name} needs {needed / 1e9:.1f} GB more in {cache}, {free / 1e9:.1f} GB are free",
            "free some space, or set HF_HOME to a folder on another disk",
            free_bytes=free,
        )


def _with_retries(name: str, file: str, commit: str) -> str:
    """One call of huggingface_hub resumes a few times; a connection that is cut again and again gets new calls, which go on."""
    for attempt in range(1, TRIES + 1):
        try:
            return str(hf_hub_download(name, file, revision=commit))
        except (httpx.TransportError, hub_errors.HfHubHTTPError) as error:
            if attempt == TRIES or not may_pass(error):
                raise
            time.sleep(min(pause_asked(error, 0.5 * 2**attempt), 60.0))
    raise AssertionError("the loop returns or raises")


def _check_hash(path: Path, sibling: RepoSibling, name: str) -> None:
    """Raise `Malformed` when the file is not what the hub lists, and remove it, so that the next try starts afresh."""
    if sibling.lfs is None:
        return
    digest = sha256_of(path)
    if digest != sibling.lfs.sha256:
        blob = path.resolve()
        path.unlink()
        blob.unlink(missing_ok=True)
        raise Malformed(
            f"{sibling.rfilename} of {name} has the SHA-256 {digest[:16]}…, the hub lists {sibling.lfs.sha256[:16]}…",
            "it was removed; fetch again, and if it repeats, distrust the mirror in between",
        )


def _remember_branch(folder: Path, info: ModelInfo) -> None:
    """`refs/main`, which the cache's readers look at; a download by commit does not write it."""
    refs = folder.parent.parent / "refs"
    refs.mkdir(parents=True, exist_ok=True)
    if not (refs / "main").is_file():
        write_text(refs / "main", str(info.sha))


@contextmanager
def _watched(blobs: Path, job: Job, done: Any, total: int, began: float) -> Iterator[None]:
    """Progress twice a second while files grow: bytes of finished and of growing files, and the time left."""
    start = done()

    def report() -> None:
        growing = sum(p.stat().st_size for p in blobs.glob("*.incomplete")) if blobs.is_dir() else 0
        now = min(total, done() + growing)
        rate = (now - start) / max(time.monotonic() - began, 1e-3)
        left = f"{(total - now) / rate:.0f} s left" if rate > 0 else ""
        job.progress("download", now, total, unit="bytes", message=left)

    try:
        with repeating(report, 0.5):
            yield
    finally:
        job.progress("download", done(), total, unit="bytes")


def _base_of(name: str, folder: Path, job: Job) -> tuple[Fetched | None, list[str]]:
    """The base that the adapter's config names, fetched too; a note when that fails: the adapter itself is here."""
    try:
        named = str(read_json(folder / "adapter_config.json").get("base_model_name_or_path") or "")
    except Malformed as error:
        return None, [f"{name} names no base: {error.message}"]
    if not is_hub_id(named):
        return None, [f"{name} names its base as {named!r}, which is no hub id: name the base yourself"]
    try:
        return fetch(FetchRequest(ref=named, with_base=False), job), []
    except (NotFound, NotAllowed, NotAModel) as error:
        return None, [f"the base {named} was not fetched: {error.message}"]


def _gguf_notes(info: ModelInfo, names: list[str], weights: list[str], folder: Path) -> list[str]:
    """Which of several files this is, what lies beside it, and which original a merge would rather have."""
    found, models = [], models_in_gguf(names)
    if len(models) > 1:
        found.append(f"of {len(models)} GGUF models {weights[0]} was fetched; name another with --file")
    if not (folder / weights[0]).parent.joinpath("config.json").is_file():
        found.append(f"to merge it, {GGUF_ORIGINAL}")
    named = info.card_data.get("base_model") if info.card_data else None
    original = named[0] if isinstance(named, list) and named else named
    if isinstance(original, str) and is_hub_id(original) and original != info.id:
        found.append(f"its card names {original} as the original, which loses less: model-merging fetch {original}")
    return found


def _notes(name: str, folder: Path) -> list[str]:
    """Offers the original of a quantised copy: most merges want it."""
    if original := original_of(name):
        return [f"{name} is a quantised copy; its original is probably {original} (owner may differ): a merge onto it loses less"]
    config = folder / "config.json"
    try:
        quantised = config.is_file() and "quantization_config" in read_json(config)
    except Malformed as error:
        return [error.message]
    if quantised:
        return [f"{name} is stored quantised; if its owner publishes a 16-bit original, a merge onto that loses less"]
    return []


if __name__ == "__main__":
    sys.exit(run_worker(main))
