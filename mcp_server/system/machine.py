"""What this machine has: memory, and the instructions that decide in which type weights are computed.

The limit that counts is the smallest of the machine's memory and the limits of the cgroups that this process is in (containers,
Colab, systemd slices): cgroup v2's memory.max or v1's memory.limit_in_bytes on every level up to the root.
"""

from __future__ import annotations

import contextlib
from functools import cache
from pathlib import Path
from typing import Final

import psutil

GIB: Final = 1 << 30
_CGROUP = Path("/sys/fs/cgroup")
_USED: Final = {"memory.max": "memory.current", "memory.limit_in_bytes": "memory.usage_in_bytes"}
_FILE_PAGES: Final = {
    "memory.max": ("inactive_file", "active_file"),
    "memory.limit_in_bytes": ("total_inactive_file", "total_active_file"),
}


def gib(count: float) -> str:
    """Bytes of memory for people: '1.73 GiB'."""
    return f"{count / GIB:.2f} GiB"


def limit_bytes() -> int:
    """The memory that this process and what it starts can hope for at most."""
    limits = [psutil.virtual_memory().total]
    for folder in memory_groups():
        for name in ("memory.max", "memory.limit_in_bytes"):
            with contextlib.suppress(OSError, ValueError):
                limits.append(int((folder / name).read_text(encoding="ascii")))
    return min(limits)


def available_bytes() -> int:
    """Memory that can still be had.

    The tightest of what the machine has available and, for every cgroup, its limit less what it cannot give back: file pages
    that it counts are dropped on demand.
    """
    found = [psutil.virtual_memory().available]
    for folder in memory_groups():
        for limit, used in _USED.items():
            with contextlib.suppress(OSError, ValueError):
                room = int((folder / limit).read_text(encoding="ascii")) - int((folder / used).read_text(encoding="ascii"))
                found.append(room + sum(_counter(folder / "memory.stat", name) or 0 for name in _FILE_PAGES[limit]))
    return min(found)


def multiplies_bfloat16() -> bool:
    """Whether the processor has instructions for products of bfloat16; without them float32 is faster."""
    return bool({"avx512_bf16", "amx_bf16"} & _instructions())


def has_tiles_for_bytes() -> bool:
    """Whether the processor multiplies matrices of 8-bit numbers in tiles (AMX)."""
    return "amx_int8" in _instructions()


@cache
def _instructions() -> frozenset[str]:
    """The names of the processor's instruction sets, as Linux lists them; none elsewhere."""
    info = Path("/proc/cpuinfo")
    return frozenset(info.read_text(encoding="utf-8").split()) if info.is_file() else frozenset()


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


def anon_bytes(pid: int | None = None) -> int:
    """Memory of one process (default: this one) that cannot be reclaimed; 0 when it is gone.

    RssAnon on Linux; elsewhere what is the process's alone (USS).
    """
    if (kilobytes := _counter(Path(f"/proc/{pid or 'self'}/status"), "RssAnon:")) is not None:
        return 1024 * kilobytes
    if not psutil.LINUX:
        with contextlib.suppress(psutil.Error):
            return int(psutil.Process(pid).memory_full_info().uss)
    return 0


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
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
            key, *values = line.split()
            if key == name:
                return int(values[0])
    return None
