"""Files that are whole or absent: atomic replaces, fsync, and folders that appear by a rename."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def write_text(path: Path, text: str) -> None:
    """Replace `path` atomically and durably; a reader sees the old or the new content, never a part.

    A failed write (disk full, read-only folder) raises `OSError` and leaves neither a temporary file nor a changed `path`. What a
    writer left that was killed in the middle, the next one removes.
    """
    _remove_orphans(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}")
    try:
        with partial.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise


def _remove_orphans(path: Path) -> None:
    """Temporary files of writers that are gone. A pid that is in use again keeps its file until the next time."""
    start = f".{path.name}."
    with contextlib.suppress(OSError):
        for entry in os.scandir(path.parent):
            if not entry.name.startswith(start):
                continue
            pid, dash, _ = entry.name[len(start) :].partition("-")
            if dash and pid.isdigit() and not _is_running(int(pid)):
                Path(entry.path).unlink()


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def write_json(path: Path, data: Any) -> None:
    """`write_text` of a JSON document."""
    write_text(path, json.dumps(data, ensure_ascii=False, indent=1) + "\n")


def write_json_at_last(path: Path, data: Any, spare: Path) -> None:
    """`write_json`; on a full disk the file `spare`, kept for this moment, is given up to make room."""
    try:
        write_json(path, data)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        spare.unlink(missing_ok=True)
        write_json(path, data)


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def sync_folder(folder: Path) -> None:
    """Make renames inside `folder` durable."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_tree(folder: Path) -> None:
    """Flush every file below `folder` to the disk, then the folders themselves."""
    for root, _, names in os.walk(folder):
        for name in names:
            handle = os.open(Path(root) / name, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
        sync_folder(Path(root))


def tree_bytes(folder: Path) -> int:
    """Sum of the sizes of the regular files below `folder`."""
    return sum((Path(root) / name).lstat().st_size for root, _, names in os.walk(folder) for name in names)


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
