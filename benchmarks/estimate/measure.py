"""Run a command and take the peak of its anonymous memory, summed over its process tree (Linux, sampled every 10 ms)."""

from __future__ import annotations

import os
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

EVERY_SECONDS = 0.01


@dataclass(frozen=True)
class Measured:
    exit_code: int
    seconds: float
    peak_anon_bytes: int
    output_tail: str


def measure(command: list[str], env: dict[str, str] | None = None) -> Measured:
    """Peak RssAnon of the command and its children: memory that the kernel cannot reclaim."""
    start = time.monotonic()
    with Path("/tmp" if env is None else env.get("TMPDIR", "/tmp")).joinpath(f"measure-{os.getpid()}.log").open("w+b") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env={**os.environ, **(env or {})})
        peak = 0
        while process.poll() is None:
            peak = max(peak, sum(_anon(pid) for pid in _tree(process.pid)))
            time.sleep(EVERY_SECONDS)
        seconds = time.monotonic() - start
        log.seek(0)
        tail = log.read()[-2000:].decode("utf-8", errors="replace")
    return Measured(process.returncode, seconds, peak, tail)


def _tree(pid: int) -> list[int]:
    found = [pid]
    for parent in found:
        try:
            for task in Path(f"/proc/{parent}/task").iterdir():
                found += [int(child) for child in (task / "children").read_text().split()]
        except OSError:
            continue
    return found


def _anon(pid: int) -> int:
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0
