"""Run one command and say what it cost: wall time, processor time, peak anonymous memory of its process tree (Linux)."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from dataclasses import dataclass
from pathlib import Path

EVERY_SECONDS = 0.01


@dataclass(frozen=True)
class Cost:
    """`wall` and `cpu` are seconds, `tail` is the end of what the command printed."""

    exit_code: int
    wall: float
    cpu: float
    anon: int
    """Bytes that the kernel cannot reclaim (RssAnon), sampled every 10 ms: a shorter spike can be missed."""
    tail: str


def run(command: list[str], log: Path, env: dict[str, str] | None = None) -> Cost:
    """Run to the end, with both outputs in the file `log`; `env` is added to the environment."""
    start, peak, done = time.monotonic(), 0, threading.Event()
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env={**os.environ, **(env or {})})

        def watch() -> None:
            nonlocal peak
            while not done.is_set():
                peak = max(peak, sum(_anon(pid) for pid in _tree(process.pid)))
                done.wait(EVERY_SECONDS)

        watcher = threading.Thread(target=watch)
        watcher.start()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        wall = time.monotonic() - start
        done.set()
        watcher.join()
    tail = log.read_bytes()[-1500:].decode("utf-8", "replace")
    return Cost(process.returncode, wall, usage.ru_utime + usage.ru_stime, peak, tail)


def _tree(pid: int) -> list[int]:
    found = [pid]
    for parent in found:
        try:
            for task in Path(f"/proc/{parent}/task").iterdir():
                found += [int(child) for child in (task / "children").read_text(encoding="utf-8").split()]
        except OSError:
            continue
    return found


def _anon(pid: int) -> int:
    try:
        for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0
