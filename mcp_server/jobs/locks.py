"""Locks that the kernel releases when their holder dies, so none can go stale.

A lock file's *content* is a claim: which job the output belongs to while that job still waits in the queue and nobody holds
the flock. The claim is only as true as the job's own state, so it cannot go stale either.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mcp_server.errors import DiskFull, NotAllowed, OutputExists
from mcp_server.system import paths
from mcp_server.system.files import above_standard, private_folder
from mcp_server.system.os_errors import FULL

_RETRY_SECONDS = 0.02


def try_lock(path: Path, *, wait_seconds: float = 0.0) -> int | None:
    """An exclusively locked file descriptor, or None when somebody else holds the lock all that time.

    The descriptor closes on exec; who passes it on hands over the lock. Raises `OSError` when the file cannot be made.
    """
    deadline = time.monotonic() + wait_seconds
    while True:
        handle = above_standard(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, _mode(path)))
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            if time.monotonic() >= deadline:
                return None
            time.sleep(_RETRY_SECONDS)
            continue
        if _is_current(handle, path):
            return handle
        os.close(handle)  # its last holder removed the file between our open and our lock


def _mode(path: Path) -> int:
    """A lock in the store is its owner's; one beside an output is read by other users and stores."""
    return 0o600 if path.is_relative_to(paths.home()) else 0o644


def _is_current(handle: int, path: Path) -> bool:
    try:
        return os.fstat(handle).st_ino == path.stat().st_ino
    except FileNotFoundError:
        return False


def is_held(path: Path) -> bool:
    """True when some process holds the lock. Probes with a shared lock, so that two probes do not see each other."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock for a short critical section; waits for it."""
    private_folder(path.parent)
    handle = above_standard(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, _mode(path)))
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def output_lock(out: Path) -> Path:
    """The lock file of an output folder: beside it, so that stores on other machines' mounts and other users see it too."""
    return out.with_name(f".{out.name}.merge-lock")


def write_claim(handle: int, store: Path, job_id: str) -> None:
    os.ftruncate(handle, 0)
    os.pwrite(handle, json.dumps({"store": str(store), "job_id": job_id}).encode(), 0)
    os.fsync(handle)


def read_claim(path: Path) -> tuple[Path, str] | None:
    """(store, job id) that the lock file names, or None when it names nothing readable."""
    try:
        claim = json.loads(path.read_text(encoding="utf-8"))
        return Path(claim["store"]), str(claim["job_id"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def remove_lock(path: Path, handle: int) -> None:
    """Unlink while the lock is held, then release it; waiters notice that their file is no longer the current one."""
    with contextlib.suppress(OSError):
        path.unlink()
    os.close(handle)


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
    if error.errno in FULL:
        return DiskFull(f"the disk of {out} is full", "free some space, or name an output on another disk")
    reason = error.strerror or str(error)
    return NotAllowed(f"cannot write beside {out}: {reason}", "name an output in a folder that you may write")
