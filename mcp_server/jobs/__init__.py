"""Background work: start, watch, cancel, resume. The only place that makes processes.

A job is a folder in the store; its runner is detached and outlives whoever started it. Everything here may be called by any
number of processes at once.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mcp_server.jobs.control import cancel, follow, interrupt, list_jobs, logs, output_of, prune, resume, status, wait
    from mcp_server.jobs.launch import start, start_merge
    from mcp_server.jobs.queue import dispatch

__all__ = [
    "cancel",
    "dispatch",
    "follow",
    "interrupt",
    "list_jobs",
    "logs",
    "output_of",
    "prune",
    "resume",
    "start",
    "start_merge",
    "status",
    "wait",
]
_HOME = {"dispatch": "queue", "start": "launch", "start_merge": "launch"}


def __getattr__(name: str) -> Any:
    """A face's name when it is first asked for: the runner of a job, a process of its own, needs none of them to start."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME.get(name, 'control')}"), name)
    globals()[name] = value
    return value
