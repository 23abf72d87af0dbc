"""Which paths may be read and written, decided after symlinks are resolved.

A person at the shell acts with their own rights, so nothing is restricted unless the operator configured roots. An agent gets
the working folder, the store and the Hugging Face cache. The check is on names: between check and use a local user who can
already write inside a root could swap a folder for a link; workers run with the caller's rights and are not a sandbox
(docs/security.md).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mcp_server.errors import BadInput, NotAllowed
from mcp_server.system import paths

if TYPE_CHECKING:
    from mcp_server.system.settings import Settings  # reading settings takes longer than the start of a worker

_KINDS = {
    stat.S_ISCHR: "a character device",
    stat.S_ISBLK: "a block device",
    stat.S_ISFIFO: "a pipe",
    stat.S_ISSOCK: "a socket",
}


@dataclass(frozen=True, slots=True)
class Policy:
    """`roots` None means unrestricted. `trust_remote_code` and `offline` are the operator's words, carried to the workers."""

    roots: tuple[Path, ...] | None = None
    offline: bool = False
    trust_remote_code: bool = False

    def check_read(self, path: str | Path) -> Path:
        """The resolved path, if it lies under a root and is an ordinary file or folder (or absent).

        A folder's own files are looked at too: a model whose config is a link to somebody's keys, or a pipe, is refused here.
        """
        with _refusals(path):
            resolved = self._check(path, "read")
            if resolved.is_dir():
                self._check_inside(resolved, str(path))
            return resolved

    def _check_inside(self, folder: Path, text: str) -> None:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_symlink():
                    self._check(entry.path, "read")
                elif not entry.is_file() and not entry.is_dir():
                    raise NotAllowed(
                        f"{entry.name} in {text} is a pipe, a socket or a device", "remove it, or name another folder"
                    )

    def check_write(self, path: str | Path) -> Path:
        """The resolved path of an output. A link at the end is refused: the output would land elsewhere."""
        with _refusals(path):
            if Path(path).is_symlink():
                raise NotAllowed(f"{path} is a symbolic link to {Path(path).readlink()}", "name the folder itself as the output")
            resolved = self._check(path, "write")
            self._keep_off_memory(resolved, str(path))
            return resolved

    @staticmethod
    def _keep_off_memory(resolved: Path, text: str) -> None:
        """The store of jobs and the hub cache may be read and are never an output: they are this program's own memory."""
        for what, folder in (("the job store", paths.home()), ("the Hugging Face cache", paths.huggingface_cache())):
            kept = Path(os.path.realpath(folder))
            if resolved.is_relative_to(kept) or kept.is_relative_to(resolved):
                raise NotAllowed(f"may not write {text}: it lies in {what} {kept}, or holds it", "name an output elsewhere")

    def _check(self, path: str | Path, verb: str) -> Path:
        text = str(path)
        if not text or any(ord(c) < 32 or ord(c) == 127 for c in text):
            raise BadInput(f"{text!r} is empty or holds control characters", "give an ordinary path")
        resolved = Path(os.path.realpath(paths.expanded(text)))
        if self.roots is not None and not any(resolved.is_relative_to(root) for root in self.roots):
            via = f" (which is {resolved})" if str(resolved) != text else ""
            raise NotAllowed(
                f"may not {verb} {text}{via}: it is outside {', '.join(map(str, self.roots))}",
                "use a path inside these folders, or ask the operator to add its folder to MODEL_MERGING_ROOTS",
            )
        if resolved.exists():
            mode = resolved.stat().st_mode
            for test, name in _KINDS.items():
                if test(mode):
                    raise NotAllowed(f"{text} is {name}, not a file or folder", "name a checkpoint folder")
        return resolved


@contextmanager
def _refusals(path: str | Path) -> Iterator[None]:
    """What the system says to a path that is too long, that it cannot encode, or that it may not look at, in our words."""
    try:
        yield
    except PermissionError as error:
        raise NotAllowed(f"{str(path)[:200]} cannot be looked at: {error.strerror}", "choose a path that you may read") from error
    except (OSError, ValueError) as error:
        what = getattr(error, "strerror", None) or "it cannot be written in this system's encoding"
        raise BadInput(f"{str(path)[:200]!r} cannot be a path: {what}", "give an ordinary path") from error


def for_person(settings: Settings) -> Policy:
    """The policy of the command line: the operator's roots when configured, else unrestricted."""
    return Policy(_resolved(settings.roots), settings.is_offline, settings.trust_remote_code)


def for_agent(settings: Settings, working_folder: Path | None = None) -> Policy:
    """The policy of the server: the operator's roots, else the working folder; the store and the hub cache in any case."""
    roots = settings.roots if settings.roots is not None else [working_folder or Path.cwd()]
    return Policy(_resolved([*roots, paths.home(), paths.huggingface_cache()]), settings.is_offline, settings.trust_remote_code)


def _resolved(roots: list[Path] | None) -> tuple[Path, ...] | None:
    return None if roots is None else tuple(dict.fromkeys(Path(os.path.realpath(r.expanduser())) for r in roots))
