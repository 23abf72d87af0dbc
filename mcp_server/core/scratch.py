"""Folders that only their maker uses: gone when it is done with them, and removed by the next maker when it was killed."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def scratch_folder(parent: Path, prefix: str) -> Iterator[Path]:
    """A new folder `parent/prefix…`, its owner's only. It may be renamed away; what is left at the end is removed."""
    parent.mkdir(parents=True, exist_ok=True)
    remove_abandoned(parent, prefix)
    folder = parent / f"{prefix}{uuid.uuid4().hex[:12]}"
    folder.mkdir(mode=0o700)
    handle = lock_folder(folder)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(handle)


def lock_folder(folder: Path) -> int:
    """Say that the folder is in use; `remove_abandoned` leaves it alone while the descriptor is open."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    fcntl.flock(handle, fcntl.LOCK_SH)
    return handle


def remove_abandoned(parent: Path, prefix: str = "", *, young_seconds: float = 60.0) -> None:
    """Remove folders `parent/prefix…` of killed makers. The youngest stay: their maker may not have locked them yet."""
    try:
        folders = [entry for entry in parent.iterdir() if entry.name.startswith(prefix)]
    except FileNotFoundError:
        return
    for folder in folders:
        with contextlib.suppress(OSError):
            if abs(time.time() - folder.stat().st_mtime) < young_seconds:
                continue
            handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(handle)
