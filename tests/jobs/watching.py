"""Waiting for a job to reach a point, bounded."""

from __future__ import annotations

import time
from collections.abc import Callable

from mcp_server import jobs
from mcp_server.jobs import store
from mcp_server.jobs.locks import is_held
from mcp_server.schemas.job import JobStatus

LONG = 300.0
"""Seconds within which a process has started even on a machine that does much else; nothing waits that long when all is well."""


def until(job_id: str, reached: Callable[[JobStatus], bool], seconds: float = LONG) -> JobStatus:
    """The first status for which `reached` holds. Fails when the job ends or the time is up before."""
    deadline = time.monotonic() + seconds
    while True:
        status = jobs.wait(job_id, 0.02)
        if reached(status):
            return status
        assert status.state in ("queued", "running"), f"it ended as {status.state}: {status.error}"
        assert time.monotonic() < deadline, f"not reached in {seconds} s: {status}"


def ended(job_id: str, seconds: float = LONG) -> JobStatus:
    """How the job ended, once its runner has let go of it too."""
    status = jobs.wait(job_id, seconds)
    deadline = time.monotonic() + seconds
    while is_held(store.find(job_id) / "runner.lock"):
        assert time.monotonic() < deadline, f"the runner of {job_id} does not let go"
        time.sleep(0.01)
    return status


def reports_progress(status: JobStatus) -> bool:
    return status.progress is not None
