"""The record of the merge against the files that are there now."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mcp_server.errors import MergingError
from mcp_server.formats.digests import Digests
from mcp_server.formats.provenance import Identity, SourceRecord, identify, weight_files
from mcp_server.formats.refs import resolve_ref
from mcp_server.formats.safetensors import read_header
from mcp_server.formats.tensors import stored_tensors
from mcp_server.recompute.merge import Merge
from mcp_server.recompute.sources import unwrapped
from mcp_server.schemas.evidence import Check
from mcp_server.system.hashes import sha256_of

_QUICK_BYTES = 2 << 30
_SHOWN = 12


def checks(merge: Merge, *, full: bool) -> Iterator[Check]:
    record = merge.provenance
    if record is None:
        if merge.recipe is not None:
            yield Check(name="provenance", passed=True, detail="no record of ours; the recipe in the folder is used")
        else:
            yield Check(
                name="provenance",
                passed=None,
                detail="the folder holds neither merge_provenance.json nor mergekit_config.yml; give the recipe with --recipe",
            )
        return
    if record.output is None:
        yield Check(name="provenance", passed=None, detail="the record has no identity of the output; --full reads the weights")
    else:
        yield _compare("provenance", "the output", merge.folder, record.output)
    if record.digests is not None:
        yield _digests(merge, record.digests, full=full)
    folders = {source.name: _folder(source) for source in record.sources if source.identity is not None}
    absent = [name for name, folder in folders.items() if not folder.exists()]
    if changed := changed_sources(merge):
        yield Check(
            name="sources_unchanged",
            passed=None,
            detail=f"{', '.join(changed)} changed since the merge: merge again before you compare with it",
        )
    elif absent:
        yield Check(name="sources_unchanged", passed=True, detail=f"{', '.join(absent)} not here; the others are as recorded")
    else:
        yield Check(name="sources_unchanged", passed=True, detail=f"{len(record.sources)} sources, as recorded")


def _digests(merge: Merge, recorded: Digests, *, full: bool) -> Check:
    """What is stored now against what was written; when not `full`, tensors of two gibibytes in all, spread over the model."""
    changed = [name for name, sha256 in recorded.files.items() if _digest(merge.folder / name) != sha256]
    written = unwrapped(recorded.tensors)
    stored = {name: tensor for file in merge.files for name, tensor in stored_tensors(file, read_header(file)).items()}
    held = unwrapped(stored)  # as the files hold them: codes and scales of a packed weight each by itself
    changed += [f"{name} (gone)" for name in written if name not in held]
    chosen = [name for name in written if name in held]
    total = sum(held[name].nbytes for name in chosen)
    step = 1 if full else max(1, -(-total // _QUICK_BYTES))
    for name in chosen[::step]:
        tensor = held[name]
        if not written[name].matches(tensor.file, tensor.offset, tensor.nbytes):
            changed.append(name)
    if changed:
        more = f" and {len(changed) - _SHOWN} more" if len(changed) > _SHOWN else ""
        return Check(name="digests", passed=False, detail=f"changed since the merge: {', '.join(changed[:_SHOWN])}{more}")
    how = f"{len(chosen[::step])} of {len(recorded.tensors)} tensors and {len(recorded.files)} files"
    return Check(name="digests", passed=True, detail=f"{how} have the digests that were recorded as they were written")


def _digest(path: Path) -> str | None:
    return sha256_of(path) if path.is_file() else None


def changed_sources(merge: Merge, *, touched: bool = False) -> list[str]:
    """Sources that are not what the record says; with `touched` also those whose weights were written to since."""
    changed = []
    for source in merge.provenance.sources if merge.provenance else []:
        folder = _folder(source)
        if source.identity is None or not folder.exists():
            continue
        times = {path.name: path.stat().st_mtime_ns for path in weight_files(folder)}
        if not _compare("", source.name, folder, source.identity).passed or (touched and source.modified not in ({}, times)):
            changed.append(source.name)
    return changed


def _folder(source: SourceRecord) -> Path:
    return Path(resolve_ref(source.ref.rpartition("+")[2], Path.cwd()))


def _compare(name: str, what: str, folder: Path, recorded: Identity) -> Check:
    try:
        now = identify(folder, recorded.hash)
    except MergingError as error:
        return Check(name=name, passed=False, detail=error.message)
    before = {file.name: file for file in recorded.files}
    for file in now.files:
        if file.name in before and before[file.name] != file:
            return Check(name=name, passed=False, detail=f"{file.name} of {what} is not the file that was recorded")
    if gone := sorted(set(before) - {file.name for file in now.files}):
        return Check(name=name, passed=False, detail=f"{gone[0]} of {what} was recorded and is gone")
    depth = "byte for byte" if recorded.hash == "full" else "by header, size and configs"
    return Check(name=name, passed=True, detail=f"{what} matches the record {depth}")
