"""Files that are whole or absent: atomic replaces, fsync, and folders that appear by a rename."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
import stat
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mcp_server.errors import NotAllowed
from mcp_server.system import paths


def keep_standard_descriptors() -> None:
    """Put /dev/null in the place of a closed stdin, stdout or stderr, whose number the next file would get."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number, which is this one


def above_standard(handle: int) -> int:
    """The same open file under a number above 2, closed on exec: whoever starts a process gives 0 to 2 another meaning."""
    if handle > 2:
        return handle
    moved = fcntl.fcntl(handle, fcntl.F_DUPFD_CLOEXEC, 3)
    os.close(handle)
    return moved


def own_only(path: str, flags: int) -> int:
    """An `opener` for `open`: a file that it makes is its owner's only, whatever the umask."""
    return os.open(path, flags, 0o600)


def write_text(path: Path, text: str) -> None:
    """Replace `path` atomically and durably, keeping its mode; a reader sees the old or the new content, never a part.

    A failed write (disk full, read-only folder) raises `OSError` and leaves neither a temporary file nor a changed `path`. What a
    writer left that was killed in the middle, the next one removes.
    """
    _remove_orphans(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}")
    try:
        private = path.is_relative_to(paths.home())
        with open(partial, "w", encoding="utf-8", opener=own_only if private else None) as file:
            if not private:
                with contextlib.suppress(OSError):  # nothing is there yet, or a file system without modes
                    os.fchmod(file.fileno(), stat.S_IMODE(path.stat().st_mode))
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


def private_folder(folder: Path) -> Path:
    """Make a folder of the store, its owner's only at every level from the store down, whatever the umask.

    Raises `NotAllowed` for a store that is not to be trusted. A folder elsewhere (a cache that the operator placed) is just made.
    """
    home = paths.home()
    if not folder.is_relative_to(home):
        folder.mkdir(parents=True, exist_ok=True)
        return folder
    if not home.is_dir():
        home.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            home.mkdir(mode=0o700)
    require_trusted(home)
    for level in reversed([folder, *folder.parents][: len(folder.relative_to(home).parts)]):
        with contextlib.suppress(FileExistsError):
            level.mkdir(mode=0o700)
    return folder


def require_trusted(home: Path) -> None:
    """Close a store of ours that others may read; raise `NotAllowed` for one that they may write, or that is somebody else's.

    A job's request says which program runs: who can write it can run what they want in the name of the store's owner.
    """
    status = home.stat()
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise NotAllowed(
            f"others may write in the job store {home} (mode {stat.S_IMODE(status.st_mode):04o}), so nothing in it is trusted",
            f"look whether its jobs are yours, then: chmod 700 {home}",
        )
    if os.geteuid() != 0 and status.st_uid != os.geteuid():
        raise NotAllowed(f"the job store {home} belongs to another user", "set MODEL_MERGING_HOME to a folder of your own")
    if status.st_mode & (stat.S_IRWXG | stat.S_IRWXO) and status.st_uid == os.geteuid():
        with contextlib.suppress(OSError):
            home.chmod(0o700)


@contextmanager
def scratch_folder(parent: Path, prefix: str) -> Iterator[Path]:
    """A new folder `parent/prefix…`, its owner's only. It may be renamed away; what is left at the end is removed."""
    private_folder(parent)
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
    handle = above_standard(os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
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
