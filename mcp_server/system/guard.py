"""Whose policy holds now, and the last line of defence: what is opened is checked at the moment when it is opened.

A call of the server and a worker's whole process run under one policy. Names are checked where they become paths (`check_read`
below, used by everything that resolves a reference); behind that an audit hook of the interpreter looks at every file that Python
opens and every folder that it lists, so that a path which no check has met (a provenance, a record, a link that was swapped
meanwhile) does not lead out either. Models' files are opened by `open_read`, which asks of the open descriptor where it leads.
Libraries that open files in native code are handed folders that were checked before.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from io import BufferedReader
from pathlib import Path
from typing import Any, Final

from mcp_server.errors import NotAllowed
from mcp_server.system import paths
from mcp_server.system.policy import Policy

_SYSTEM: Final = ("/proc", "/sys", "/dev", "/etc", "/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/opt", "/Library")
_LOOKS: Final = frozenset({"open", "os.listdir", "os.scandir"})
_call: ContextVar[Policy | None] = ContextVar("policy of this call", default=None)
_process: Policy | None = None
_watching = False


def current() -> Policy | None:
    """The policy of this call or process; None where nothing is restricted."""
    return _call.get() or _process


def check_read(path: str | Path) -> Path:
    """The resolved path, if the policy that holds now lets it be read. Raises `NotAllowed` or `BadInput`."""
    policy = current()
    return Path(path) if policy is None or policy.roots is None else policy.check_read(path)


@contextmanager
def enforced(policy: Policy) -> Iterator[None]:
    """Hold this policy during one call, in the threads that inherit its context."""
    _watch()
    token = _call.set(policy)
    try:
        yield
    finally:
        _call.reset(token)


@contextmanager
def own_files() -> Iterator[None]:
    """For what a library opens by itself, such as the user's hub token: no name that a caller gave may be opened in here."""
    token = _call.set(None)
    try:
        yield
    finally:
        _call.reset(token)


def enforce(policy: Policy) -> None:
    """Hold this policy in the whole process, for good."""
    global _process  # noqa: PLW0603 - a process has one policy
    _watch()
    _process = policy


def _watch() -> None:
    global _watching  # noqa: PLW0603 - an audit hook cannot be removed
    if not _watching:
        _watching = True
        sys.addaudithook(_opened)


def open_checked(path: str | os.PathLike[str], flags: int = os.O_RDONLY) -> int:
    """A descriptor of a model's file for reading. Raises `NotAllowed` when what the kernel opened lies outside the roots.

    The question is asked of the open descriptor, so that no link that is swapped between a check and the opening is followed.
    """
    descriptor = os.open(path, flags | getattr(os, "O_CLOEXEC", 0))
    try:
        policy = current()
        if policy is not None and policy.roots is not None and (opened := _path_of(descriptor)) is not None:
            _require_inside(opened, policy.roots)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def open_read(path: str | os.PathLike[str]) -> BufferedReader:
    """A model's file opened for reading, checked as `open_checked` does."""
    return open(path, "rb", opener=open_checked)


def _path_of(descriptor: int) -> str | None:
    """Where the kernel says that an open file lies; None where the system does not tell."""
    if sys.platform == "linux":
        return os.readlink(f"/proc/self/fd/{descriptor}")  # noqa: PTH115 - as text
    if sys.platform == "darwin":
        import fcntl

        return os.fsdecode(fcntl.fcntl(descriptor, fcntl.F_GETPATH, bytes(1024)).rstrip(b"\0"))
    return None


def _opened(event: str, arguments: tuple[Any, ...]) -> None:
    if event not in _LOOKS:
        return
    policy = _call.get() or _process
    if policy is None or policy.roots is None or not isinstance(arguments[0], str | bytes):
        return
    name = os.fsdecode(arguments[0])
    if "/" not in name:
        return  # relative to a folder that is open already, as in the removal of a tree
    _require_inside(os.path.realpath(name), policy.roots)


def _require_inside(resolved: str, roots: tuple[Path, ...]) -> None:
    if not _lies_in(resolved, [str(root) for root in roots]) and not _lies_in(resolved, _program()):
        raise NotAllowed(
            f"may not open {resolved}: it is outside {', '.join(map(str, roots))}",
            "use files inside these folders, or ask the operator to add its folder to MODEL_MERGING_ROOTS",
        )


def _lies_in(path: str, folders: list[str]) -> bool:
    return any(path == folder or path.startswith(folder.rstrip("/") + "/") for folder in folders)


@cache
def _program() -> list[str]:
    """Where the program itself and its libraries live and keep their caches: no place for anybody's models."""
    libraries = [
        sys.prefix,
        sys.base_prefix,
        *(entry for entry in sys.path if entry),
        str(paths.PACKAGE),
        str(paths.PACKAGE.parent),
    ]
    home = os.path.expanduser("~")  # noqa: PTH111 - as it is where nobody has a home
    caches = [str(paths.huggingface_cache().parent), *(f"{home}/{name}" for name in (".cache", ".config", ".local"))]
    found = {os.path.realpath(folder) for folder in (*_SYSTEM, *libraries, *caches)}
    return sorted(found - {"/"})
