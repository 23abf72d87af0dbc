"""Background work: start, watch, cancel, resume. The only place that makes processes.

A job is a folder in the store; its runner is detached and outlives whoever started it. Everything here may be called by any
number of processes at once.
"""

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
