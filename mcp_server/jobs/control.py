"""What can be asked of a job: its state, its log, to stop, to go on."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from mcp_server.errors import BadInput, NotFound, RunFailed
from mcp_server.jobs import about, publish, queue, store
from mcp_server.jobs import locks as claims
from mcp_server.jobs.locks import is_held, try_lock
from mcp_server.jobs.log_file import last_progress, read_page
from mcp_server.jobs.process import end_group, is_alive
from mcp_server.jobs.store import TERMINAL, Record
from mcp_server.schemas.job import JobList, JobStatus, LogPage
from mcp_server.system import files, paths
from mcp_server.system.files import remove_abandoned

CANCEL_SECONDS: Final = 5.0
_POLL_SECONDS: Final = 0.2
_TRIES: Final = 3
_OVER: Final = ("succeeded", "failed", "cancelled")
LOG_PAGE_BYTES: Final = 6_000


def status(job_id: str) -> JobStatus:
    """The truth about a job now: a runner that was killed is noticed here. Starts nothing. Raises `NotFound`."""
    folder = store.find(job_id)
    return public(folder, _read(folder))


def list_jobs(offset: int = 0, limit: int = 20, state: str | None = None, kind: str | None = None) -> JobList:
    """Newest first. Results are left out: `status` has them. Reads the page only, and for a state what the index does not know.

    Starts nothing.
    """
    names = [name for name in store.names() if kind is None or name.startswith(f"{kind}-")]
    if state is not None:
        names = _in_state(names, state)
    folders = [paths.jobs_dir() / name for name in names[offset : offset + limit]]
    jobs = [public(folder, _read(folder), with_result=False) for folder in folders]
    return JobList(jobs=jobs, total=len(names), next_offset=offset + limit if offset + limit < len(names) else None)


def _in_state(names: list[str], state: str) -> list[str]:
    """Those that are in this state: active jobs are read, ended ones looked up, and read where the index does not know them."""
    active = {folder.name for folder in store.active()}
    ended = store.ended()
    matching = []
    for name in names:
        known = None if name in active else ended.get(name)
        if known is None:
            record = _read(paths.jobs_dir() / name)
            known = record.state
            if known in TERMINAL and name not in active:
                store.note_ended(name, known)
        if known == state:
            matching.append(name)
    return matching


def _read(folder: Path) -> Record:
    record = queue.note_if_dead(folder, store.read(folder))
    if record.state == "queued":
        store.mark_active(folder, True)  # its starter may have been killed before it could
    return record


def logs(job_id: str, offset: int = 0, limit: int = LOG_PAGE_BYTES) -> LogPage:
    """A page of the worker's log from byte `offset`; the page names the next offset."""
    if offset < 0 or limit < 1:
        raise BadInput(f"offset {offset} and limit {limit} name no page", "offset counts from 0, limit from 1")
    return read_page(store.find(job_id), offset, limit)


def cancel(job_id: str, keep: bool = False) -> JobStatus:
    """End a job and everything it started within five seconds; its partial output goes unless `keep`.

    A job that is over is returned as it is. Raises `RunFailed` when something could not be ended.
    """
    folder = store.find(job_id)
    record = queue.note_if_dead(folder, store.read(folder))
    if record.state in _OVER:
        return public(folder, record)
    files.write_json(folder / "cancel.json", {"keep": keep})
    for _ in range(_TRIES):  # a job that waits may be started, and one that runs may end, between our look and our deed
        if record.state == "running":
            _stop(folder, record)
        if _cancel_here(folder):
            queue.dispatch()
            return public(folder, store.read(folder))
        record = store.read(folder)
    raise RunFailed(f"job {job_id} could not be ended", f"its processes are named in {folder / 'status.json'}")


def interrupt(job_id: str) -> JobStatus:
    """Stop a job so that it can be resumed."""
    folder = store.find(job_id)
    for _ in range(_TRIES):
        record = store.read(folder)
        if record.state == "running":
            _stop(folder, record)
            break
        if record.state != "queued" or _interrupt_here(folder):
            break
    return status(job_id)


def _interrupt_here(folder: Path) -> bool:
    """Interrupt a job that waits in the queue. False when somebody is starting it."""
    handle = try_lock(folder / "runner.lock", wait_seconds=1.0)
    if handle is None:
        return False
    try:
        record = store.read(folder, by_holder=True)
        if record.state == "queued":
            store.write(folder, record.model_copy(update={"state": "interrupted", "finished": store.now()}))
            store.mark_active(folder, False)
        return record.state != "running"
    finally:
        os.close(handle)


def _stop(folder: Path, record: Record) -> None:
    """Ask the runner to end its worker, wait for it, and force both when it does not answer."""
    deadline = time.monotonic() + CANCEL_SECONDS - 1.0
    lock = folder / "runner.lock"
    signalled = False
    while is_held(lock) and time.monotonic() < deadline:
        runner = store.runner_of(folder, store.read(folder))
        if not signalled and runner is not None and is_alive(runner):
            with contextlib.suppress(ProcessLookupError):
                os.kill(runner.pid, signal.SIGTERM)
            signalled = True
        time.sleep(0.02)
    if is_held(lock):
        record = store.read(folder)
        end_group(record.worker, 0.3)
        end_group(store.runner_of(folder, record), 0.3)
    queue.note_if_dead(folder, store.read(folder))


def _cancel_here(folder: Path) -> bool:
    """Cancel a job that nobody runs: it waits in the queue, or its runner is dead. False when somebody holds it."""
    handle = try_lock(folder / "runner.lock", wait_seconds=1.0)
    if handle is None:
        return False
    try:
        record = store.read(folder, by_holder=True)
        if record.state in _OVER:
            return True
        end_group(record.worker)
        record = record.model_copy(
            update={"state": "cancelled", "finished": store.now(), "worker": None, "runner": None, "error": None}
        )
        publish.discard(folder, record)
        _release(record)
        store.write(folder, record)
        store.drop_spares(folder)
        store.mark_active(folder, False)
        return True
    finally:
        os.close(handle)


def _release(record: Record) -> None:
    if record.output is not None:
        claims.release(Path(record.output), record.job_id)


def resume(job_id: str) -> JobStatus:
    """Put an interrupted, failed or cancelled job back into the queue; the stream engine goes on where it was.

    Raises `BadInput` when there is nothing to resume.
    """
    folder = store.find(job_id)
    record = queue.note_if_dead(folder, store.read(folder))
    if record.state == "succeeded":
        raise BadInput(f"job {job_id} has succeeded", "nothing is left to resume")
    if record.state in ("queued", "running"):
        queue.dispatch()  # a queue that nobody moves on is moved on here
        return status(job_id)
    handle = try_lock(folder / "runner.lock", wait_seconds=2.0)  # a runner may be on its way out, or somebody else resumes it
    if handle is None:
        return status(job_id)
    try:
        record = store.read(folder, by_holder=True)
        if record.state in ("failed", "cancelled", "interrupted"):
            _queue_again(folder, record)
    finally:
        os.close(handle)
    queue.dispatch()
    return status(job_id)


def _queue_again(folder: Path, record: Record) -> None:
    if record.output is not None:
        claims.claim(Path(record.output), record.job_id)
    (folder / "cancel.json").unlink(missing_ok=True)
    store.keep_spares(folder)
    again = {"state": "queued", "finished": None, "error": None, "exit_code": None, "runner": None, "worker": None}
    store.write(folder, record.model_copy(update=again))
    store.mark_active(folder, True)


def wait(job_id: str, seconds: float | None = None, on_progress: Callable[[JobStatus], None] | None = None) -> JobStatus:
    """The job's state when it is over, or after `seconds`. `on_progress` is called about five times a second.

    Whoever waits in the foreground also keeps the queue moving, should the runner have been killed that would have done it.
    """
    deadline = None if seconds is None else time.monotonic() + seconds
    pause = 0.02
    while True:
        found = status(job_id)
        if found.state == "queued":
            queue.dispatch()
            found = status(job_id)
        if on_progress is not None:
            on_progress(found)
        left = _POLL_SECONDS if deadline is None else deadline - time.monotonic()
        if found.state in TERMINAL or left <= 0:
            return found
        time.sleep(min(pause, left))
        pause = min(pause * 1.5, _POLL_SECONDS)


def output_of(text: str) -> Path | None:
    """The folder that the job of this id writes or looks at; None for a text that is no id of a job (it may be a path).

    Raises `NotFound` for an id that this store does not have, and for a job about no folder.
    """
    if not store.is_id(text) or Path(text).exists():
        return None
    if (output := status(text).output) is None:
        raise NotFound(f"job {text} is about no folder", "name the merged model's folder")
    return Path(output)


def follow(job_id: str, on_progress: Callable[[JobStatus], None] | None = None) -> JobStatus:
    """`wait` in the foreground: Ctrl-C stops the job so that it can be resumed, and returns it as interrupted."""
    try:
        return wait(job_id, on_progress=on_progress)
    except KeyboardInterrupt:
        return interrupt(job_id)


def prune(older_than_seconds: float = 0.0) -> int:
    """Remove the folders of jobs that are over, their leftovers beside outputs included, never outputs. Returns how many.

    Interrupted jobs stay while their partial output is there: they can still be resumed. So does a job whose folder or partial
    output an active job names. When no job is active, the cached copies of bases with an adapter folded in go too: they can be
    made again. What the index knows to be over is read once only, under its lock.
    """
    removed = 0
    listed = store.active()
    over, active = store.ended(), {folder.name for folder in listed}
    # a runner that is on its way out has written its last state and is still listed: what it names is over with it
    named = "\n".join(_request_text(folder) for folder in listed if _read(folder).state not in TERMINAL)
    for folder in store.folders():
        if (folder.name in active or folder.name not in over) and _read(folder).state not in TERMINAL:
            continue
        if older_than_seconds and store.age_seconds(folder) < older_than_seconds:
            continue
        handle = try_lock(folder / "runner.lock", wait_seconds=5.0)  # a runner may be on its way out, or somebody resumes it
        if handle is None:
            continue
        try:
            removed += _prune_one(folder, named)
        finally:
            os.close(handle)
    store.forget_removed()
    for abandoned in (paths.jobs_dir() / ".new", paths.home() / "asks"):
        remove_abandoned(abandoned)
    if not store.active():
        shutil.rmtree(paths.cache_dir() / "folded", ignore_errors=True)
    return removed


def _request_text(folder: Path) -> str:
    with contextlib.suppress(OSError, ValueError, RecursionError):
        return json.dumps(json.loads((folder / "request.json").read_bytes()), ensure_ascii=False)
    return ""


def _prune_one(folder: Path, named: str) -> bool:
    """Unless what active jobs name (`named`, as JSON text) holds the folder or its partial output."""
    record = store.read(folder, by_holder=True)
    if record.state not in TERMINAL:
        return False
    if any(place and json.dumps(str(place), ensure_ascii=False)[1:-1] in named for place in (folder, record.partial)):
        return False
    if record.state == "interrupted" and record.partial is not None and Path(record.partial).exists():
        return False
    if record.state != "interrupted" and record.partial is not None:
        shutil.rmtree(record.partial, ignore_errors=True)
    if record.state != "succeeded":
        _release(record)
    shutil.rmtree(folder, ignore_errors=True)
    return True


def public(folder: Path, record: Record, *, with_result: bool = True) -> JobStatus:
    """The stored record as faces show it."""
    result: dict[str, Any] | None = None
    if with_result and record.state == "succeeded":
        with contextlib.suppress(OSError, ValueError):
            result = files.read_json(folder / "result.json")
    return JobStatus(
        job_id=record.job_id,
        kind=record.kind,
        state=record.state,
        created=record.created,
        started=record.started,
        finished=record.finished,
        output=about.subject(folder, record),
        about=about.about(folder, record),
        engine=record.engine,
        takes="; ".join(filter(None, (record.takes.in_words() if record.takes else "", record.known, record.held))),
        progress=last_progress(folder),
        error=record.error,
        exit_code=record.exit_code,
        log_path=str(folder / "log.txt"),
        next_step=_next_step(record),
        result=result,
    )


def _next_step(record: Record) -> str:
    if record.state == "queued":
        return f"ask for its status again; if nothing runs, move the queue on: model-merging resume {record.job_id}"
    if record.state == "running":
        return "ask for its status again, or cancel it"
    if record.state == "interrupted":
        return f"resume it: model-merging resume {record.job_id}"
    if record.state == "failed":
        return str((record.error or {}).get("next_step") or f"see its log, then: model-merging resume {record.job_id}")
    if record.state == "succeeded" and record.kind == "merge":
        return f"verify the result: model-merging verify {record.output}"
    return ""
