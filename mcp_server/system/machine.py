"""How much memory there is.

The limit that counts is the smallest of the machine's memory and the limits of the cgroups that this process is in (containers,
Colab, systemd slices): cgroup v2's memory.max or v1's memory.limit_in_bytes on every level up to the root.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")


def limit_bytes() -> int:
    """The memory that this process and what it starts can hope for at most."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limits = [total]
    for folder in memory_groups():
        for name in ("memory.max", "memory.limit_in_bytes"):
            with contextlib.suppress(OSError, ValueError):
                limits.append(int((folder / name).read_text(encoding="ascii")))
    return min(limits)


def memory_groups() -> list[Path]:
    """This process's memory cgroup and its ancestors, as far as they are visible here."""
    try:
        lines = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    folders = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root = _CGROUP
        elif "memory" in controllers.split(","):
            root = _CGROUP / "memory"
        else:
            continue
        folder = root / path.lstrip("/")
        # Inside a container the path may be the host's; then only the mount's own top is visible, and it is the right one.
        here = folder if folder.is_dir() else root
        while True:
            folders.append(here)
            if here == root or root not in here.parents:
                break
            here = here.parent
    return folders


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
