"""From the partial folder to the output: the output is whole or absent, whenever the machine stops.

    1  the worker ends; `done.json` notes that its work is whole
    2  everything is flushed to the disk
    3  the partial folder takes the output's place; what was there and may be replaced goes aside, in one step where it can be
    4  `published.json` notes it, and what went aside is removed

Each step can be repeated, so a job that is resumed goes on from whichever one it had reached: `done.json` names the finished
folder by its inode, which a rename keeps, so that it is known under whichever name it lies.
"""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path
from typing import Any, Final

from mcp_server.errors import OutputExists, RunFailed
from mcp_server.formats.exports import EXPORT_FILE, not_an_export
from mcp_server.formats.provenance import not_ours
from mcp_server.jobs.store import Record
from mcp_server.system import files
from mcp_server.system.outputs import is_free, replace_folder, require_folder

PLAN_FILE: Final = "plan.yaml"
"""The reasons for the recipe, where its plan is in the store: they travel with the model into every report."""

_WHOLE: Final = {"merge": "*.safetensors", "export": EXPORT_FILE}
"""Kind of job → what its finished folder holds."""
NOT_OURS: Final = {"merge": not_ours, "export": not_an_export}
"""Kind of job → why a folder is none that such a job wrote, so that a new one does not replace it."""


def prepare(record: Record) -> None:
    """An empty partial folder for engines that start afresh; the stream engine finds its own journal and goes on."""
    if record.partial is None:
        return
    partial = Path(record.partial)
    if record.engine != "stream":
        shutil.rmtree(partial, ignore_errors=True)
    partial.parent.mkdir(parents=True, exist_ok=True)


def is_worker_done(folder: Path, record: Record) -> bool:
    return (folder / "done.json").is_file() and (record.partial is None or _is_finished(folder, Path(record.partial)))


def was_published(folder: Path, record: Record) -> bool:
    """True when a former attempt renamed the output and could not say so: its work was whole and the partial folder is gone."""
    if (folder / "published.json").is_file():
        return True
    return record.output is not None and record.partial is not None and _is_finished(folder, Path(record.output))


def _is_finished(folder: Path, place: Path) -> bool:
    """Is the folder at `place` the one that the worker finished?"""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return bool(files.read_json(folder / "done.json")["folder"] == _inode(place))
    return False


def _inode(place: Path) -> list[int]:
    status = place.lstat()
    return [status.st_dev, status.st_ino]


def note_worker_done(folder: Path, record: Record, result: dict[str, Any]) -> None:
    """Check that there is something to publish, then note it with the final result."""
    if record.partial is not None:
        partial = Path(record.partial)
        if not partial.is_dir() or not any(partial.glob(_WHOLE[record.kind])):
            raise RunFailed(
                f"the worker reported success but left no {_WHOLE[record.kind]} in {partial}",
                f"see {folder / 'log.txt'} and resume the job",
            )
        if (folder / PLAN_FILE).is_file():
            shutil.copyfile(folder / PLAN_FILE, partial / PLAN_FILE)
        files.sync_tree(partial)
    files.write_json(folder / "result.json", result)
    finished = None if record.partial is None else _inode(Path(record.partial))
    files.write_json(folder / "done.json", {"attempt": record.attempt, "folder": finished})


def move_into_place(folder: Path, record: Record, *, overwrite: bool) -> None:
    if record.partial is not None and record.output is not None:
        partial, out = Path(record.partial), Path(record.output)
        if not _is_finished(folder, out):
            if not is_free(out) and not overwrite:
                raise OutputExists(
                    f"{out} appeared while the {record.kind} ran",
                    f"move it away and resume the job: the {record.kind} itself is done and kept",
                )
            require_folder(out, overwrite=overwrite, not_ours=NOT_OURS[record.kind])  # again: it may have changed since the start
            replace_folder(partial, out, aside(record))
            files.sync_folder(out.parent)
        clear_away(folder, record)


def clear_away(folder: Path, record: Record) -> None:
    """Note that the output is in its place, then remove what it replaced (under either name that a stop can have left it)."""
    files.write_json(folder / "published.json", {"output": record.output})
    for left in (aside(record), Path(record.partial or "")):
        if record.partial is not None and left.is_dir() and not _is_finished(folder, left):
            shutil.rmtree(left, ignore_errors=True)


def aside(record: Record) -> Path:
    """Where what is replaced lies until the new output is in its place."""
    out = Path(record.output or "")
    return out.with_name(f"{out.name}.replaced-{record.job_id}")


def discard_useless(folder: Path, record: Record) -> None:
    """Remove a partial output that no resume would go on with: mergekit's, unless it is whole or was asked to stay."""
    if record.partial is None or record.engine == "stream" or (folder / "done.json").is_file():
        return
    with contextlib.suppress(OSError, ValueError, KeyError):
        if files.read_json(folder / "request.json")["parameters"].get("keep_partial"):
            return
    shutil.rmtree(record.partial, ignore_errors=True)


def discard(folder: Path, record: Record) -> None:
    """Remove what a cancelled job had written, unless it was asked to stay."""
    keep = False
    with contextlib.suppress(OSError, ValueError):
        keep = bool(files.read_json(folder / "cancel.json").get("keep"))
    if record.partial is not None and not keep:
        shutil.rmtree(record.partial, ignore_errors=True)
        with contextlib.suppress(OSError):
            aside(record).rmdir()
    (folder / "done.json").unlink(missing_ok=True)
