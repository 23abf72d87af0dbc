"""One output, one job: the check that makes exactly one of many racing requests win."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

from mcp_server.core import paths
from mcp_server.core.errors import DiskFull, NotAllowed, OutputExists
from mcp_server.jobs.locks import is_held, output_lock, read_claim, remove_lock, try_lock, write_claim


def claim(out: Path, job_id: str) -> None:
    """Reserve `out` for a job that is about to queue. Raises `OutputExists` when another job has it, `NotAllowed`, `DiskFull`."""
    path = output_lock(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        handle = try_lock(path, wait_seconds=0.5)
    except OSError as error:
        raise _refused(out, error) from error
    holder = read_claim(path)
    if handle is None:
        raise _taken(out, holder[1] if holder else None)
    try:
        if holder is not None and holder != (paths.home(), job_id) and _is_active(*holder):
            raise _taken(out, holder[1])
        write_claim(handle, paths.home(), job_id)
    except OSError as error:
        raise _refused(out, error) from error
    finally:
        os.close(handle)


def release(out: Path, job_id: str) -> None:
    """Remove the lock file if it still names this job and nobody holds it."""
    path = output_lock(out)
    if read_claim(path) != (paths.home(), job_id):
        return
    handle = try_lock(path, wait_seconds=0.2)
    if handle is not None:
        remove_lock(path, handle)


def _is_active(home: Path, job_id: str) -> bool:
    """A claim is as true as its job: queued, or running under a runner that lives. Reads another store's file if need be."""
    folder = home / "jobs" / job_id
    try:
        state = json.loads((folder / "status.json").read_text(encoding="utf-8"))["state"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return state == "queued" or (state == "running" and is_held(folder / "runner.lock"))


def _taken(out: Path, job_id: str | None) -> OutputExists:
    by = f"job {job_id}" if job_id else "another merge"
    return OutputExists(f"{by} is writing {out}", "wait for it or cancel it, or name another output folder", job_id=job_id)


def _refused(out: Path, error: OSError) -> NotAllowed | DiskFull:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFull(f"the disk of {out} is full", "free some space, or name an output on another disk")
    reason = error.strerror or str(error)
    return NotAllowed(f"cannot write beside {out}: {reason}", "name an output in a folder that you may write")
