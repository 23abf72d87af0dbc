"""Watch and steer jobs of every kind. State lives on disk, so any server of this store can answer for any job."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Annotated

import anyio.to_thread
from mcp.server.mcpserver import Context
from pydantic import Field

from mcp_server import jobs
from mcp_server.schemas.job import JobKind, JobList, JobState, JobStatus, LogPage
from mcp_server.server.checked import CheckedTool, checked
from mcp_server.server.inputs import ENDS, MAX_WAIT_SECONDS, READS, REPEATABLE, JobId, Offset, PageSize

POLL_SECONDS = 0.25
STILL_HERE = 0.001
"""Percent; the protocol wants every number above the one before."""
RUNNING = frozenset({"queued", "running"})
PAGE_CHARACTERS = 6_000


def tools() -> list[CheckedTool]:
    return [
        checked(merge_status, "Status of a job", READS),
        checked(list_merges, "List jobs", READS),
        checked(merge_logs, "Read a job's log", READS),
        checked(cancel_merge, "Cancel a job", ENDS),
        checked(resume_merge, "Resume a job", REPEATABLE),
    ]


async def merge_status(
    job_id: JobId,
    ctx: Context,
    wait_seconds: Annotated[int, Field(ge=0, le=MAX_WAIT_SECONDS, description="Wait this long for its end.")] = 0,
) -> JobStatus:
    """State, progress, result or error of a job of any kind, with the next step. Use wait_seconds=50 and call again while it
    runs.
    """
    begin = time.monotonic()
    status = await anyio.to_thread.run_sync(jobs.status, job_id)
    share = share_done(status)
    percent = None if share is None else 100 * share  # in one unit for the whole call: the job's own, or the time waited
    while status.state in RUNNING and (waited := time.monotonic() - begin) < wait_seconds:
        if percent is None:
            await ctx.report_progress(round(waited, 1), wait_seconds, described(status))
        else:
            percent = max(percent + STILL_HERE, 100 * (share_done(status) or 0.0))
            await ctx.report_progress(round(percent, 3), 100, described(status))
        await anyio.sleep(min(POLL_SECONDS, wait_seconds - waited))
        status = await anyio.to_thread.run_sync(jobs.status, job_id)
    return status


def share_done(status: JobStatus) -> float | None:
    """How far the whole job is, from 0 to 1; None where it does not say how long it still takes."""
    if status.started is None or status.progress is None or (left := status.progress.left_seconds) is None:
        return None
    spent = (datetime.now(UTC) - datetime.fromisoformat(status.started)).total_seconds()
    return spent / (spent + left) if spent > 0 else None


def described(status: JobStatus) -> str:
    """One line for a progress bar: "merge running: layers 12/30 tensors"."""
    line = f"{status.kind} {status.state}"
    if (progress := status.progress) is None:
        return line
    total = f"/{progress.total:g}" if progress.total is not None else ""
    left = f", {progress.left_seconds:.0f} s left" if progress.left_seconds is not None else ""
    return f"{line}: {progress.stage} {progress.done:g}{total} {progress.unit}".rstrip() + left


def list_merges(
    offset: Offset = 0,
    limit: PageSize = 10,
    state: Annotated[JobState | None, Field(description="In this state.")] = None,
    kind: Annotated[JobKind | None, Field(description="Of this kind.")] = None,
) -> JobList:
    """List jobs, newest first; merge_status(job_id) has the result of one."""
    return jobs.list_jobs(offset=offset, limit=limit, state=state, kind=kind)


def merge_logs(job_id: JobId, offset: Offset = 0) -> LogPage:
    """Read what a job printed, a page at a time; `next_offset` continues, null is the end so far."""
    return jobs.logs(job_id, offset=offset, limit=PAGE_CHARACTERS)


def cancel_merge(
    job_id: JobId,
    keep: Annotated[bool, Field(description="Keep the partial output.")] = False,
) -> JobStatus:
    """End a running or queued job and remove its partial output. A finished output is never touched."""
    return jobs.cancel(job_id, keep=keep)


def resume_merge(job_id: JobId) -> JobStatus:
    """Go on with an interrupted or failed job: a stream merge continues where it stopped, other jobs start again."""
    return jobs.resume(job_id)
