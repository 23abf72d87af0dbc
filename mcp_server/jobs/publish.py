"""From the partial folder to the output: the output is whole or absent, whenever the machine stops.

    1  the worker ends; `done.json` notes that its work is whole
    2  everything is flushed to the disk
    3  an output that may be replaced is moved aside
    4  the partial folder is renamed to the output
    5  `published.json` notes it, and what was moved aside is removed

Each step can be repeated, so a job that is resumed goes on from whichever one it had reached.
"""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path
from typing import Any

from mcp_server.errors import OutputExists, RunFailed
from mcp_server.jobs.store import Record
from mcp_server.system import files


def prepare(record: Record) -> None:
    """An empty partial folder for engines that start afresh; the stream engine finds its own journal and goes on."""
    if record.partial is None:
        return
    partial = Path(record.partial)
    if record.engine != "stream":
        shutil.rmtree(partial, ignore_errors=True)
    partial.parent.mkdir(parents=True, exist_ok=True)


def is_worker_done(folder: Path, record: Record) -> bool:
    return (folder / "done.json").is_file() and (record.partial is None or Path(record.partial).is_dir())


def was_published(folder: Path, record: Record) -> bool:
    """True when a former attempt renamed the output and could not say so: its work was whole and the partial folder is gone."""
    if (folder / "published.json").is_file():
        return True
    if not (folder / "done.json").is_file() or not record.output or not record.partial:
        return False
    return Path(record.output).is_dir() and not Path(record.partial).exists()


def note_worker_done(folder: Path, record: Record, result: dict[str, Any]) -> None:
    """Check that there is something to publish, then note it with the final result."""
    if record.partial is not None:
        partial = Path(record.partial)
        if not partial.is_dir() or not any(partial.glob("*.safetensors")):
            raise RunFailed(
                f"the engine reported success but left no weights in {partial}", f"see {folder / 'log.txt'} and resume the job"
            )
        files.sync_tree(partial)
    files.write_json(folder / "result.json", result)
    files.write_json(folder / "done.json", {"attempt": record.attempt})


def move_into_place(folder: Path, record: Record, *, overwrite: bool) -> None:
    if record.partial is not None and record.output is not None:
        partial, out = Path(record.partial), Path(record.output)
        aside = out.with_name(f"{out.name}.replaced-{record.job_id}")
        if out.exists() and not (out.is_dir() and not any(out.iterdir())):
            if not overwrite:
                raise OutputExists(
                    f"{out} appeared while the merge ran", "move it away and resume the job: the merge itself is done and kept"
                )
            out.rename(aside)
        partial.rename(out)
        files.sync_folder(out.parent)
        files.write_json(folder / "published.json", {"output": str(out)})
        shutil.rmtree(aside, ignore_errors=True)


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
            Path(f"{record.output}.replaced-{record.job_id}").rmdir()
    (folder / "done.json").unlink(missing_ok=True)
