"""Which waiting job may start now, and starting it.

There is no daemon: whoever starts, ends or resumes a job, or waits for one in the foreground, looks at the queue. So a queued job
costs nothing but its folder, and a queue whose runner was killed moves on at the next of these; who only looks starts nothing.

Merges and sweeps start in order, at most `max_running` at once, and only while the estimates of all running jobs together stay
inside the memory budget; a merge without an estimate counts as needing all of it. Other kinds start at once.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from mcp_server.errors import RunFailed
from mcp_server.jobs import store
from mcp_server.jobs.locks import is_held, locked, try_lock
from mcp_server.jobs.process import end_group, identify
from mcp_server.jobs.store import TERMINAL, Record
from mcp_server.system import paths
from mcp_server.system.files import own_only, require_trusted
from mcp_server.system.machine import GIB, limit_bytes
from mcp_server.system.paths import PACKAGE
from mcp_server.system.settings import Settings, load

HEAVY: Final = frozenset({"merge", "sweep"})


def dispatch() -> None:
    """Start every waiting job that may run now; note the dead ones on the way."""
    if not (store.queue_lock().parent / ".active").is_dir():
        return
    require_trusted(paths.home())
    settings = load()
    with locked(store.queue_lock()):
        running, waiting = [], []
        for folder in store.active():
            record = note_if_dead(folder, store.read(folder))
            if record.state == "running":
                running.append(record)
            elif record.state == "queued":
                waiting.append((folder, record))
            else:
                store.mark_active(folder, False)
        blocked = False
        for folder, record in waiting:
            if record.kind in HEAVY and (blocked or not admits(running, record, settings)):
                blocked = True
                continue
            spawn(folder, record)
            running.append(record)


def admits(running: Iterable[Record], record: Record, settings: Settings) -> bool:
    """May this merge or sweep start beside the jobs that run?"""
    heavy = [r for r in running if r.kind in HEAVY]
    if not heavy:
        return True
    if len(heavy) >= settings.max_running:
        return False
    budget = int(settings.ram_gib * GIB) if settings.ram_gib else limit_bytes()
    needs = [r.estimate_bytes for r in (*heavy, record)]
    return all(n is not None for n in needs) and sum(n or 0 for n in needs) <= budget


def spawn(folder: Path, record: Record) -> None:
    """Start the job's detached runner, handing it the job's lock, so that no moment is left in which nobody holds it."""
    handle = try_lock(folder / "runner.lock", wait_seconds=2.0)
    if handle is None:
        return
    try:
        record = record.model_copy(
            update={
                "state": "running",
                "started": store.now(),
                "finished": None,
                "attempt": record.attempt + 1,
                "error": None,
                "runner": None,
                "worker": None,
            }
        )
        store.write(folder, record)
        with open(folder / "log.txt", "ab", opener=own_only) as log:
            # From here on only the runner writes the record, its own identity first.
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "mcp_server.jobs.runner", str(folder), str(handle)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=folder,
                env={**os.environ, "PYTHONPATH": str(PACKAGE.parent)},
                pass_fds=(handle,),
                start_new_session=True,
            )
        store.note_spawned(folder, identify(process.pid))
    finally:
        os.close(handle)
    # A caller that lives on (the server) must not collect zombies; one that ends leaves them to init.
    threading.Thread(target=process.wait, name=f"reap-{folder.name}", daemon=True).start()


def note_if_dead(folder: Path, record: Record) -> Record:
    """A job that says "running" without a runner was killed: end what is left of it and say "interrupted"."""
    if record.state != "running" or is_held(folder / "runner.lock"):
        return record
    handle = try_lock(folder / "runner.lock", wait_seconds=0.2)
    if handle is None:
        return record
    try:
        record = store.read(folder)
        if record.state in TERMINAL or record.state == "queued":
            return record
        end_group(record.worker)
        error = RunFailed(
            f"the runner of job {record.job_id} was ended from outside (kill -9, out of memory, or a restart of the machine)",
            "resume the job to go on",
        )
        record = record.model_copy(update={"state": "interrupted", "finished": store.now(), "error": error.as_dict()})
        store.write(folder, record)
        store.mark_active(folder, False)
        return record
    finally:
        os.close(handle)
