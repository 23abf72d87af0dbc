"""Whether the kernel ended somebody for lack of memory."""

from __future__ import annotations

import contextlib
from pathlib import Path

from mcp_server.core.machine import memory_groups


def oom_kills() -> int:
    """Kills for lack of memory so far among the processes of this process's cgroup. Compare before and after.

    The kernel counts every such kill at its victim's group, whichever limit was reached; kills in other groups say nothing about
    a worker of ours. The machine's own count stands in only where no group is counted.
    """
    for folder in memory_groups()[:1]:
        for name in ("memory.events", "memory.oom_control"):
            if (count := _counter(folder / name, "oom_kill")) is not None:
                return count
    return _counter(Path("/proc/vmstat"), "oom_kill") or 0


def _counter(file: Path, name: str) -> int | None:
    with contextlib.suppress(OSError, ValueError):
        for line in file.read_text(encoding="ascii").splitlines():
            key, _, value = line.partition(" ")
            if key == name:
                return int(value)
    return None
