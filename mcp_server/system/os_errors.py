"""What the operating system refuses, in our words: the one translation that faces, jobs and workers use."""

from __future__ import annotations

import contextlib
import errno
import shutil
from pathlib import Path
from typing import Final

from mcp_server.errors import BadInput, DiskFull, MergingError, NotAllowed, NotFound, RunFailed

FULL: Final = (errno.ENOSPC, errno.EDQUOT)
REFUSED: Final = (errno.EACCES, errno.EPERM, errno.EROFS)
_LOOP: Final = "Symlink loop from"
_NO_PATH: Final = (errno.ELOOP, errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.EINVAL, errno.ENXIO, errno.ENODEV)


def refusal(error: BaseException | None, where: str | Path = "", then: str = "try again") -> MergingError | None:
    """Ours as it is, the system's in our words, None for anything else, which is a bug."""
    if isinstance(error, MergingError):
        return error
    if isinstance(error, OSError):
        return in_our_words(error, where, then)
    if isinstance(error, RuntimeError) and str(error).startswith(_LOOP):  # how pathlib says ELOOP
        place = str(error).removeprefix(_LOOP).strip(" '\"")
        return BadInput(f"{place} is a link that leads back to itself", f"name another path, or repair this one, and {then}")
    return None


def in_our_words(error: OSError, where: str | Path = "", then: str = "try again") -> MergingError:
    """One of our errors that names the file (`where` when the system does not) and the next step; `then` is what follows it."""
    place = _name(error) or str(where)
    at = f" {place}" if place else ""
    said = error.strerror or str(error)
    if error.errno in FULL:
        with contextlib.suppress(OSError, ValueError):
            free = shutil.disk_usage(Path(place).parent).free
            return DiskFull(f"the disk is full at{at} ({free:,} bytes free)", f"free some space and {then}", free_bytes=free)
        return DiskFull(f"the disk is full{' at' if at else ''}{at}", f"free some space and {then}")
    if error.errno in REFUSED:
        return NotAllowed(f"{place or 'a file'}: {said}", f"choose a path that you may use, or change its rights, and {then}")
    if error.errno == errno.ENOENT:
        return NotFound(f"{place or 'a file'} is not there (any more): {said}", f"put it back and {then}")
    if error.errno in _NO_PATH:
        return BadInput(f"{place or 'a path'} cannot be used: {said}", f"name another path, or repair this one, and {then}")
    if error.errno == errno.EIO:
        return RunFailed(f"the disk reported an input/output error at{at}", f"check the disk; copy the file elsewhere and {then}")
    return RunFailed(f"{place + ': ' if place else ''}{said}", f"put it right and {then}")


def _name(error: OSError) -> str:
    """The paths that the system names, as text. A number is a descriptor, which helps nobody."""
    names = [name for name in (error.filename, error.filename2) if isinstance(name, str | bytes) or hasattr(name, "__fspath__")]
    return " → ".join(str(name) for name in names)
