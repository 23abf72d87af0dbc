"""The SHA-256 of a file, remembered: a base of gigabytes is not read again for every fold.

What is remembered is a hint. It holds while path, size, modification time, change time, inode and device are the same; the change
time is the kernel's own and cannot be set by who copies a file over another. Evidence that people rely on reads the file again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from pathlib import Path
from typing import Any

from mcp_server.system import paths
from mcp_server.system.files import private_folder, read_json, write_json
from mcp_server.system.guard import open_read


def stamp(path: Path) -> list[int]:
    """What tells one state of a file from another without reading it: size, times, inode, device."""
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_dev]


def sha256_of(path: Path) -> str:
    """Of the whole file, read now."""
    with open_read(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_sha256(path: Path, *, remembered: bool = True) -> str:
    """Of the whole file. `remembered` False reads it whatever was noted before (and notes it for others)."""
    identity, memory = _noted(path)
    if remembered and (known := known_sha256(path)) is not None:
        return known
    digest = sha256_of(path)
    if identity[0] == str(path.resolve()) and identity[1:] == stamp(path):  # else it changed under our eyes: nothing to note
        with contextlib.suppress(OSError):
            private_folder(memory.parent)
            write_json(memory, {"file": identity, "sha256": digest})
    return digest


def known_sha256(path: Path) -> str | None:
    """What was noted of the file as it is now; null where nothing was. Reads none of it."""
    identity, memory = _noted(path)
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        known: dict[str, Any] = read_json(memory)
        if known["file"] == identity:
            return str(known["sha256"])
    return None


def _noted(path: Path) -> tuple[list[Any], Path]:
    """(what tells this state of the file from others, where its hash is noted)."""
    identity = [str(path.resolve()), *stamp(path)]
    return identity, paths.cache_dir() / "hashes" / f"{hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:32]}.json"
