"""The detached process that looks after one job: `python -m mcp_server.jobs.runner FOLDER LOCK_FD`.

It outlives client and server, holds the job's lock and its output's, starts the worker in a process group of its own, keeps its
log, measures its memory, ends it when it hangs or when somebody asks (SIGTERM or SIGINT; `cancel.json` says that it is for good),
moves the output into place when it is whole, and writes how it all ended. Then it starts the next job of the queue.
"""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from mcp_server.errors import OutputExists
from mcp_server.jobs import outcome, publish, queue, store
from mcp_server.jobs.locks import output_lock, remove_lock, try_lock
from mcp_server.jobs.log_file import LogWriter
from mcp_server.jobs.process import identify
from mcp_server.jobs.store import Record
from mcp_server.jobs.watch import Stop, Watched, watch
from mcp_server.system import files
from mcp_server.system.machine import oom_kills
from mcp_server.system.os_errors import refusal
from mcp_server.system.settings import Settings, load

_OUTPUT_LOCK_SECONDS = 10.0


def main(folder: Path, handle: int) -> int:
    os.set_inheritable(handle, False)
    stop = Stop()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: stop.set())
    settings = load()
    record = store.read(folder).model_copy(update={"runner": identify(os.getpid())})
    log = LogWriter(folder, settings.log_bytes)
    output_handle: int | None = None
    try:
        store.write(folder, record)
        if record.output:
            output_handle = try_lock(output_lock(Path(record.output)), wait_seconds=_OUTPUT_LOCK_SECONDS)
            if output_handle is None:
                raise OutputExists(f"another merge is writing {record.output}", "wait for it, or name another output folder")
        record = run(folder, record, settings, log, stop, output_handle)
    except Exception as error:  # noqa: BLE001 - the process boundary: the traceback goes to the log, the job ends as "bug"
        if (refused := refusal(error, folder, "resume the job")) is not None:
            record = outcome.failed(record, refused)
        else:
            log.feed(traceback.format_exc().encode(errors="replace"))
            record = outcome.failed(record, outcome.bug(folder), outcome.EXIT_BUG)
    log.line(f"{record.state}{': ' + record.error['message'] if record.error else ''}")
    log.close()
    end(folder, record, output_handle)
    os.close(handle)
    queue.dispatch()
    return 0


def run(folder: Path, record: Record, settings: Settings, log: LogWriter, stop: Stop, output_handle: int | None) -> Record:
    """One attempt. Returns the record of how it ended; raises for what goes wrong around the worker."""
    began = time.monotonic()
    request = store.read_request(folder)
    if publish.was_published(folder, record):
        publish.clear_away(folder, record)
        return outcome.succeeded(record)
    if not publish.is_worker_done(folder, record):
        for name in ("result.json", "error.json"):
            (folder / name).unlink(missing_ok=True)
        publish.prepare(record)
        kills = oom_kills()

        def started(worker: Any) -> None:
            store.write(folder, record.model_copy(update={"worker": worker}))

        watched = watch(folder, request, settings, log, stop, output_handle, started)
        ended = outcome.classify(folder, record, watched, oom_kills() - kills)
        if ended.state != "running":
            return ended
        publish.note_worker_done(folder, record, finish(folder, record, watched, time.monotonic() - began))
    publish.move_into_place(folder, record, overwrite=bool(request["parameters"].get("overwrite")))
    return outcome.succeeded(record)


def finish(folder: Path, record: Record, watched: Watched, seconds: float) -> dict[str, Any]:
    """A merge's result with what only the runner knows; other kinds keep the worker's result as it is."""
    result: dict[str, Any] = files.read_json(folder / "result.json")
    if record.kind == "merge":
        result = outcome.merge_result(record, result, seconds, watched.peak_anon_bytes)
    return result


def end(folder: Path, record: Record, output_handle: int | None) -> None:
    """Write the last state, tidy up and give up the output. A full disk delays the last state, not the tidying."""
    if record.state == "cancelled":
        publish.discard(folder, record)
    elif record.state in ("failed", "interrupted"):
        publish.discard_useless(folder, record)
    if output_handle is not None and record.output:
        remove_lock(output_lock(Path(record.output)), output_handle)
    for delay in (0.5, 2.0, 8.0, None):
        try:
            store.write(folder, record.model_copy(update={"finished": store.now(), "worker": None}))
            break
        except OSError:
            if delay is None:
                raise
            time.sleep(delay)
    store.drop_spares(folder)
    store.mark_active(folder, False)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2])))
