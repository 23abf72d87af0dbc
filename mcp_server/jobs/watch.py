"""Run a worker and watch it: its log, its memory, its silence, and the wish to stop it."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mcp_server.jobs.log_file import LogWriter
from mcp_server.jobs.process import ProcessId, anon_bytes, end_group, identify, worker_environment
from mcp_server.system.settings import Settings

SAMPLE_SECONDS = 0.2
_STOP_GRACE_SECONDS = 2.0


class Stop:
    """Set by a signal handler; `wake` is a pipe that ends the runner's sleep at once."""

    def __init__(self) -> None:
        self.wanted = False
        self.wake, self._write = os.pipe()
        os.set_blocking(self._write, False)

    def set(self) -> None:
        self.wanted = True
        with contextlib.suppress(BlockingIOError):
            os.write(self._write, b"x")


@dataclass(frozen=True, slots=True)
class Watched:
    """How the worker ended. `silent_seconds` is set when it was ended for saying nothing."""

    returncode: int
    peak_anon_bytes: int | None
    stopped: bool = False
    silent_seconds: float | None = None


def watch(
    folder: Path,
    request: dict[str, Any],
    settings: Settings,
    log: LogWriter,
    stop: Stop,
    output_handle: int | None,
    started: Callable[[ProcessId | None], None],
) -> Watched:
    """Start the worker of `request` and stay until it has ended.

    It leads its own process group and inherits the output's lock, so that the output stays locked while anything of it lives.
    """
    parameters = request["parameters"]
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", request["worker"], str(folder)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd=folder,
        env=worker_environment(
            os.environ,
            threads=parameters.get("threads"),
            online=bool(request.get("online")),
            mergekit_bin=settings.mergekit_bin,
        ),
        pass_fds=() if output_handle is None else (output_handle,),
        start_new_session=True,
    )
    worker = identify(process.pid)
    started(worker)
    pipe = process.stdout
    assert pipe is not None
    os.set_blocking(pipe.fileno(), False)
    peak: int | None = None
    events = folder / "events.jsonl"
    seen, heard = _size(events), time.monotonic()
    silent: float | None = None
    open_pipe = True
    next_sample = time.monotonic()
    while True:
        heard_from = [stop.wake, pipe.fileno()] if open_pipe else [stop.wake]
        ready, _, _ = select.select(heard_from, [], [], SAMPLE_SECONDS)
        if pipe.fileno() in ready:
            data = os.read(pipe.fileno(), 65_536)
            open_pipe = bool(data)
            if data:
                log.feed(data)
                heard = time.monotonic()
        if time.monotonic() >= next_sample:
            next_sample = time.monotonic() + SAMPLE_SECONDS
            anon = anon_bytes(process.pid)
            peak = anon if peak is None else max(peak, anon or 0)
            if (size := _size(events)) != seen:
                seen, heard = size, time.monotonic()
        if stop.wanted:
            end_group(worker, _STOP_GRACE_SECONDS)
            break
        if time.monotonic() - heard > settings.hang_timeout_s:
            silent = time.monotonic() - heard
            end_group(worker, _STOP_GRACE_SECONDS)
            break
        if _has_ended(process):
            break
    # While the worker is unreaped its pid, and so its group's id, cannot belong to anybody else.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    returncode = process.wait()
    _drain(pipe.fileno(), log)
    pipe.close()
    return Watched(returncode, peak, stop.wanted, silent)


def _has_ended(process: subprocess.Popen[bytes]) -> bool:
    """Without reaping it where the system can tell that (macOS cannot)."""
    if hasattr(os, "waitid"):
        return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    return process.poll() is not None


def _drain(handle: int, log: LogWriter) -> None:
    """What the worker said last is often why it ended."""
    try:
        while data := os.read(handle, 65_536):
            log.feed(data)
    except BlockingIOError:
        return


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
