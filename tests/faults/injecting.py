"""Make one file operation of a process fail: the n-th that touches a watched folder, with an error that the system has for it.

Opening, listing, making, renaming, removing and locking are met by an audit hook of the interpreter, which may raise in their
place; looking at a file, reading, writing and flushing have no such event, so their functions are replaced. Only for a forked
child: a hook cannot be removed.
"""

from __future__ import annotations

import builtins
import errno
import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

KINDS: Final[dict[str, tuple[int, ...]]] = {
    "open": (errno.EACCES, errno.EIO, errno.ENOENT, errno.EMFILE, errno.ESTALE, errno.ELOOP),
    "create": (errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EDQUOT, errno.EMFILE),
    "read": (errno.EIO, errno.ESTALE, errno.EISDIR),
    "write": (errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EFBIG),
    "print": (errno.EPIPE, errno.ENOSPC, errno.EIO),
    "flush": (errno.EIO, errno.ENOSPC),
    "look": (errno.EACCES, errno.EIO, errno.ELOOP, errno.ENOENT),
    "list": (errno.EACCES, errno.EIO, errno.ENOENT),
    "make": (errno.ENOSPC, errno.EACCES, errno.EROFS),
    "rename": (errno.EACCES, errno.ENOSPC, errno.EXDEV, errno.EIO),
    "remove": (errno.EACCES, errno.EBUSY, errno.EIO),
    "lock": (errno.ENOLCK, errno.EIO),
    "change": (errno.EPERM, errno.EROFS),
}
"""Kind of operation → what the system may answer to it."""
_EVENTS: Final = {
    "os.listdir": "list", "os.scandir": "list", "os.mkdir": "make", "os.link": "make", "os.symlink": "make",
    "os.rename": "rename", "os.remove": "remove", "os.rmdir": "remove", "fcntl.flock": "lock", "os.chmod": "change",
    "os.utime": "change", "os.truncate": "change", "mmap.__new__": "open",
}  # fmt: skip
_FUNCTIONS: Final = {
    "stat": "look", "lstat": "look", "fstat": "look", "readlink": "look", "statvfs": "look", "pathconf": "look", "fsync": "flush",
    "read": "read", "pread": "read", "preadv": "read", "readv": "read", "write": "write", "pwrite": "write", "pwritev": "write",
}  # fmt: skip
_OURS: Final = "mcp_server"
_PROGRAM: Final = (".py", ".pyc", ".so")
_readlink = os.readlink


class Injector:
    """Counts the operations; the one with the number `at` fails with its kind's `variant`-th error."""

    def __init__(self, watched: tuple[Path, ...], at: int | None, variant: int = 0) -> None:
        self.watched = tuple(str(folder) for folder in watched)
        self.at = at
        self.variant = variant
        self.seen: list[str] = []
        self.points: list[str] = []
        """While nothing is to fail: which kind of operation, by which chain of calls of the program."""
        self.failed: tuple[str, str, str] | None = None
        self._paused = 0

    def install(self) -> None:
        sys.addaudithook(self._event)
        for name, kind in _FUNCTIONS.items():
            if hasattr(os, name):
                setattr(os, name, self._instead_of(getattr(os, name), kind))
        builtins.open = io.open = self._open_instead  # type: ignore[assignment]
        sys.stdout = io.TextIOWrapper(io.BufferedWriter(_File(self, 1, "w", kind="print")), encoding="utf-8")

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Nothing fails and nothing counts in here: what another process does."""
        self._paused += 1
        try:
            yield
        finally:
            self._paused -= 1

    def meet(self, kind: str, place: str | None) -> None:
        """Count one operation, and raise in its place when its number is up."""
        if self._paused or place is None:
            return
        self.seen.append(kind)
        if self.at is None:
            self.points.append(f"{kind} {calls()}")
        if len(self.seen) - 1 == self.at:
            errors = KINDS[kind]
            number = errors[(self.variant + len(self.seen)) % len(errors)]
            self.failed = (kind, errno.errorcode[number], place)
            raise OSError(number, os.strerror(number), None if place == "<stdout>" else place)

    def place(self, target: Any) -> str | None:
        """The path, if it is watched; the path of a descriptor as the kernel knows it."""
        if isinstance(target, int) and not isinstance(target, bool):
            try:
                name = _readlink(f"/proc/self/fd/{target}")
            except OSError:
                return None
        elif isinstance(target, str | bytes | os.PathLike):
            name = os.fsdecode(os.fspath(target))
            name = name if name.startswith("/") else f"{Path.cwd()}/{name}"
        else:
            return None
        if name.endswith(_PROGRAM) or "__pycache__" in name:
            return None
        return name if name.startswith(self.watched) else None

    def _event(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            writes = isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            self.meet("create" if writes else "open", self.place(arguments[0]))
        elif (kind := _EVENTS.get(event)) is not None:
            self.meet(kind, self.place(arguments[0]))

    def _instead_of(self, real: Callable[..., Any], kind: str) -> Callable[..., Any]:
        def instead(target: Any, *more: Any, **options: Any) -> Any:
            self.meet(kind, self.place(target))
            return real(target, *more, **options)

        return instead

    def _open_instead(
        self, file: Any, mode: str = "r", buffering: int = -1, encoding: str | None = None, errors: str | None = None,
        newline: str | None = None, closefd: bool = True, opener: Any = None,
    ) -> Any:  # fmt: skip
        """`open`, whose file can fail at every read and write."""
        place = self.place(file)
        if place is None:
            return _open(file, mode, buffering, encoding, errors, newline, closefd, opener)
        raw = _File(self, file, mode.replace("b", "").replace("t", ""), closefd, opener, place=place)
        if buffering == 0:
            return raw
        both = "+" in mode
        buffered = (io.BufferedRandom if both else io.BufferedReader if "r" in mode else io.BufferedWriter)(raw)
        if "b" in mode:
            return buffered
        text = io.TextIOWrapper(buffered, encoding, errors, newline)
        text.mode = mode  # type: ignore[misc]
        return text


def calls() -> str:
    """The lines of the program that are being run, innermost first."""
    frame, found = sys._getframe(1), []
    while frame is not None:
        if _OURS in frame.f_code.co_filename:
            found.append(f"{frame.f_code.co_filename}:{frame.f_lineno}")
        frame = frame.f_back  # type: ignore[assignment]
    return " ".join(found)


class _File(io.FileIO):
    def __init__(
        self, injector: Injector, file: Any, mode: str, closefd: bool = True, opener: Any = None, *, place: str = "<stdout>",
        kind: str = "write",
    ) -> None:  # fmt: skip
        super().__init__(file, mode, closefd, opener)
        self._injector, self._place, self._kind = injector, place, kind

    def readinto(self, buffer: Any) -> int:
        self._injector.meet("read", self._place)
        return super().readinto(buffer)

    def readall(self) -> bytes:
        self._injector.meet("read", self._place)
        return super().readall()

    def read(self, size: int = -1) -> bytes:
        self._injector.meet("read", self._place)
        return super().read(size)

    def write(self, data: Any) -> int:
        self._injector.meet(self._kind, self._place)
        return super().write(data)


_open = builtins.open
