"""The record of the merge against the files that are there now."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mcp_server.errors import MergingError
from mcp_server.formats.provenance import Identity, identify
from mcp_server.formats.refs import resolve_ref
from mcp_server.schemas.evidence import Check
from mcp_server.steps.verify.merge import Merge


def checks(merge: Merge) -> Iterator[Check]:
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
    changed = []
    absent = []
    for source in record.sources:
        for part in source.ref.split("+") if source.identity is None else [source.ref.rpartition("+")[2]]:
            if source.identity is None:
                continue
            folder = Path(resolve_ref(part, Path.cwd()))
            if not folder.is_dir():
                absent.append(source.name)
            elif not _compare("", source.name, folder, source.identity).passed:
                changed.append(source.name)
    if changed:
        yield Check(
            name="sources_unchanged",
            passed=None,
            detail=f"{', '.join(changed)} changed since the merge: merge again before you compare with it",
        )
    elif absent:
        yield Check(name="sources_unchanged", passed=True, detail=f"{', '.join(absent)} not here; the others are as recorded")
    else:
        yield Check(name="sources_unchanged", passed=True, detail=f"{len(record.sources)} sources, as recorded")


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
