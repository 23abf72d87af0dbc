"""One exception tree for every failure that a user can meet.

A message says what is wrong and the value that was found; `next_step` says what to do about it. The faces turn these into a
`ToolError` or an exit code; anything else that is raised is a bug and stays loud. Exit codes are a contract:

    0 done, yes   1 done, no   2 bad input   3 could not decide   4 a run failed   70 a bug   130 stopped by Ctrl-C
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any, ClassVar


class MergingError(Exception):
    """Base of the tree. `str(error)` is the message, then the next step on a line of its own."""

    exit_code: ClassVar[int] = 2

    def __init__(self, message: str, next_step: str = "", **details: Any) -> None:
        self.message = message
        self.next_step = next_step
        self.details = details
        super().__init__(message)

    def __str__(self) -> str:
        return f"{self.message}\n→ {self.next_step}" if self.next_step else self.message

    def as_dict(self) -> dict[str, Any]:
        """The form that crosses a process boundary (`error.json`); `from_dict` reads it back."""
        return {
            "type": type(self).__name__,
            "message": self.message,
            "next_step": self.next_step,
            "exit_code": self.exit_code,
            "details": self.details,
        }


class BadInput(MergingError):
    """The request itself is wrong; nothing was done."""


class NotFound(BadInput):
    """A path, job, strategy or file that does not exist."""


class NotAModel(BadInput):
    """A folder or file that is no checkpoint we can read (pickle, GGUF and quantised ones are named as such)."""


class Malformed(BadInput):
    """A file that claims a format and breaks it: a header, a config, a recipe, a scenario."""


class Incompatible(BadInput):
    """Sources that cannot be merged with each other; the differing fields are named."""


class Unsupported(BadInput):
    """Understood, but this engine or version does not do it; the way round is the next step."""


class OutputExists(BadInput):
    """The output is there already and overwriting was not asked for."""


class NotAllowed(BadInput):
    """Outside the configured roots or against the operator's settings."""


class DoesNotFit(MergingError):
    """The estimate exceeds the memory or disk that is there; nothing was started."""

    exit_code = 1


class RunFailed(MergingError):
    """A run started and did not finish: engine failure, worker killed."""

    exit_code = 4


class OutOfMemory(RunFailed):
    """The kernel or the limit ended the worker."""


class DiskFull(RunFailed):
    """The output's file system has no room left."""


class InputChanged(RunFailed):
    """A source was changed, truncated or removed while the run was under way."""


def _tree(cls: type[MergingError]) -> Iterable[type[MergingError]]:
    yield cls
    for sub in cls.__subclasses__():
        yield from _tree(sub)


def from_dict(data: dict[str, Any]) -> MergingError:
    """Rebuild an error that a worker wrote with `as_dict`. Unknown types come back as `RunFailed`."""
    classes = {cls.__name__: cls for cls in _tree(MergingError)}
    cls = classes.get(str(data.get("type")), RunFailed)
    details = data.get("details")
    kept = {k: v for k, v in details.items() if k not in ("message", "next_step")} if isinstance(details, dict) else {}
    return cls(str(data.get("message", "no message")), str(data.get("next_step", "")), **kept)


def did_you_mean(name: str, known: Iterable[str], limit: int = 3) -> str:
    """' Did you mean "x"?' for a misspelt name, or '' when nothing is near."""
    names = list(known)
    near = difflib.get_close_matches(name.lower(), names, n=limit, cutoff=0.6)
    near = near or [other for other in names if other.startswith(f"{name.lower()}_")][:limit]
    return f" Did you mean {' or '.join(repr(n) for n in near)}?" if near else ""
