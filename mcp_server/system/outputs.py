"""What may be written where, and what may be replaced: one rule for every command that leaves a file or a folder behind.

A place is free when nothing is there, or an empty folder. What is there is replaced only when that was asked for and it is
recognisably this product's own work of the same kind, and nothing else; who writes a kind says how it is recognised (`ours`).
Whether the place can take the output at all (a mount point, a read-only disk, a name that is too long) is found out here, before
the work, and not by the rename at its end.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final

from mcp_server.errors import BadInput, MergingError, NotAllowed, OutputExists
from mcp_server.system.files import read_json, write_json, write_text
from mcp_server.system.os_errors import REFUSED
from mcp_server.system.policy import Policy

RECORD: Final = ".model-merging.json"
"""In a folder that several of our files share with others': which of them are ours, by content."""
_LONGEST_SUFFIX: Final = ".replaced-merge-20261231-235959-xxxx"
_LONGEST_NAME: Final = 64
"""Of a file in an output folder, such as model-00001-of-00002.safetensors under its temporary name."""
_MOST_BYTES: Final = 64_000_000
_AT_FDCWD: Final = -100
_RENAME_EXCHANGE: Final = 2
_MOUNTS: Final = Path("/proc/self/mountinfo")


def is_free(path: Path) -> bool:
    """Nothing is there, or an empty folder."""
    return not os.path.lexists(path) or (path.is_dir() and not path.is_symlink() and not any(path.iterdir()))


def require_place(out: Path) -> None:
    """Raise `NotAllowed` or `BadInput` where an output folder could not be renamed into its place when it is whole."""
    parent = next(p for p in out.parents if os.path.lexists(p))
    if not parent.is_dir():
        raise BadInput(f"{parent} is not a folder, so {out} cannot be made in it", "name an output in a folder")
    longest, most = os.pathconf(parent, "PC_NAME_MAX"), os.pathconf(parent, "PC_PATH_MAX")
    if any(len(os.fsencode(part)) + len(_LONGEST_SUFFIX) + 1 > longest for part in out.relative_to(parent).parts):
        raise BadInput(f"the name {out.name[:60]!r}… is too long for a folder that is made beside it under another name",
                       f"use a name of at most {longest - len(_LONGEST_SUFFIX) - 1} bytes")  # fmt: skip
    if len(os.fsencode(out)) + len(_LONGEST_SUFFIX) + _LONGEST_NAME > most:
        raise BadInput(f"the path of the output has {len(os.fsencode(out))} bytes, which is too long", "use a shorter path")
    if (mount := _mount_at_or_in(out)) is not None:
        raise NotAllowed(
            f"{mount} is a mount point, which cannot be replaced by a finished folder", f"name a folder inside it: {mount}/merged"
        )
    if os.statvfs(parent).f_flag & os.ST_RDONLY:
        raise NotAllowed(f"cannot write beside {out}: {parent} is on a read-only file system", "name an output elsewhere")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise NotAllowed(
            f"cannot write beside {out}: {parent} may not be written", "name an output in a folder that you may write"
        )


def _mount_at_or_in(out: Path) -> Path | None:
    """The mount point that `out` is, or holds. Bind mounts of one file system show in the kernel's list only."""
    if os.path.ismount(out):
        return out
    try:
        lines = _MOUNTS.read_bytes().splitlines()
    except OSError:
        return None
    for line in lines:
        raw = line.split(b" ")[4]
        for code in (b"040", b"011", b"012", b"134"):  # how the list writes blanks and backslashes
            raw = raw.replace(b"\\" + code, bytes([int(code, 8)]))
        if (place := Path(os.fsdecode(raw))).is_relative_to(out):
            return place
    return None


def require_apart(out: Path, others: Iterable[Path], what: str) -> None:
    """Raise `BadInput` when `out` is one of the others, lies inside one, or holds one."""
    for other in others:
        if out.is_relative_to(other) or other.is_relative_to(out):
            raise BadInput(f"the output {out} and {what} {other} are one inside the other", "name another output folder")


def require_folder(out: Path, *, overwrite: bool, not_ours: Callable[[Path], str | None]) -> None:
    """Raise `OutputExists` unless `out` is free, or is to be overwritten and `not_ours` finds no reason against it."""
    if is_free(out):
        return
    if not out.is_dir() or out.is_symlink():
        raise OutputExists(f"{out} is a file", "name a folder as the output")
    if not overwrite:
        raise OutputExists(f"{out} exists", "name another output folder, or ask for it to be overwritten")
    if (reason := not_ours(out)) is not None:
        raise OutputExists(f"{out} {reason}, so it is not replaced", "name another output folder, or remove it yourself")


def require_file(path: Path, ours: Callable[[str], bool], what: str) -> None:
    """Raise `OutputExists` unless nothing is at `path`, or a file in which `ours` recognises our own `what`."""
    if not os.path.lexists(path):
        return
    if path.is_symlink() or not path.is_file():
        raise OutputExists(f"{path} exists and is not a regular file", "name another file")
    try:
        known = path.stat().st_size <= _MOST_BYTES and ours(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, ValueError):
        known = False
    if not known:
        raise OutputExists(
            f"{path} exists and is not {what} of ours, so it is not replaced", "name another file, or remove it yourself"
        )


def write_own(path: Path, text: str, ours: Callable[[str], bool], what: str) -> None:
    """`write_text` of a file that may replace only an earlier one of its kind; makes its folder."""
    require_file(path, ours, what)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text)


def leave_record(path: Path, data: dict[str, Any], ours: Callable[[str], bool]) -> Path | None:
    """Write what was found about a model beside it; None where that is not to be: the folder may not be written, lies in the
    program's own memory, or holds another file of that name. The job's result has it all the same."""
    try:
        Policy().check_write(path)
        require_file(path, ours, "a record")
        write_json(path, data)
    except MergingError:
        return None
    except OSError as error:
        if error.errno not in REFUSED:
            raise
        return None
    return path


class Kept:
    """The files that we keep in a folder of the user's: replaced only while they are, byte for byte, what we wrote there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._record = folder / RECORD

    @property
    def known(self) -> dict[str, list[str]]:
        """File name → SHA-256 of what we wrote last and before; empty where we never wrote."""
        try:
            found = read_json(self._record)
        except (OSError, ValueError):
            return {}
        files = found.get("files") if isinstance(found, dict) else None
        return {str(k): list(map(str, v)) for k, v in files.items() if isinstance(v, list)} if isinstance(files, dict) else {}

    def require(self, names: Iterable[str]) -> None:
        """Raise `OutputExists` when one of these names is taken by something that we did not write, or that was changed since."""
        known = self.known
        for name in names:
            path = self.folder / name
            if os.path.lexists(path) and (
                path.is_symlink() or not path.is_file() or _digest(path.read_bytes()) not in known.get(name, [])
            ):
                raise OutputExists(
                    f"{path} exists and is not as it was written here, so it is not replaced",
                    "name another folder, or move it away",
                )

    def write(self, name: str, text: str) -> Path:
        """Replace the file, and remember it. The record is written first: after a stop in between the old file is still known."""
        self.require([name])
        known = self.known
        digests = [_digest(text.encode()), *known.get(name, [])][:2]
        write_json(self._record, {"made_by": "model-merging", "files": {**known, name: digests}})
        write_text(self.folder / name, text)
        return self.folder / name


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def replace_folder(new: Path, place: Path, aside: Path) -> None:
    """Put the whole folder `new` at `place` and what was there at `aside`, in one step where the file system can.

    Elsewhere by two renames. An old folder that cannot be renamed (a lower layer of a container's image) is removed: the new
    one is whole by now.
    """
    if is_free(place):
        new.rename(place)
        return
    if exchange(new, place):
        new.rename(aside)
        return
    try:
        place.rename(aside)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        shutil.rmtree(place)
    new.rename(place)


def exchange(one: Path, other: Path) -> bool:
    """Swap two paths atomically. False where the system or the file system has no such operation."""
    if sys.platform != "linux":
        return False
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    done: int = rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE)
    return done == 0


def is_json_with(*keys: str) -> Callable[[str], bool]:
    """Recognises a JSON object that has these keys."""

    def ours(text: str) -> bool:
        try:
            found = json.loads(text)
        except (ValueError, RecursionError):
            return False
        return isinstance(found, dict) and set(keys) <= set(found)

    return ours
