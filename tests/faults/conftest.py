"""What faults need: fake merges, small file systems, memory limits. A skip here is loud: it names what the machine lacks."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.fake_worker import FAKE
from tests.jobs.conftest import job, merge

__all__ = ["FAKE", "disk", "job", "memory_group", "merge"]

Disk = Callable[[int], Path]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """disk(size_bytes) mounts a file system of that size. Needs root on Linux."""
    if os.geteuid() != 0 or sys.platform != "linux":
        pytest.skip("mounting a small file system needs root on Linux")
    mounted: list[Path] = []

    def mount(size: int) -> Path:
        folder = tmp_path / f"disk{len(mounted)}"
        folder.mkdir()
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            pytest.skip(f"this machine does not let root mount a tmpfs: {done.stderr.strip()}")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture
def memory_group(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """memory_group(limit_bytes) makes a memory cgroup and returns its procs file. Needs root and a writable controller."""
    made: list[Path] = []

    def make(limit: int) -> Path:
        v2 = Path("/sys/fs/cgroup/cgroup.controllers")
        if v2.is_file() and "memory" in v2.read_text(encoding="ascii").split():
            group, name, swap = Path("/sys/fs/cgroup") / f"merge-test-{os.getpid()}", "memory.max", "memory.swap.max"
        else:
            group, name, swap = Path("/sys/fs/cgroup/memory") / f"merge-test-{os.getpid()}", "memory.limit_in_bytes", None
        try:
            group.mkdir()
            made.append(group)
            (group / name).write_text(str(limit), encoding="ascii")
            if swap is not None and (group / swap).exists():
                (group / swap).write_text("0", encoding="ascii")
        except OSError as error:
            pytest.skip(f"this machine has no memory controller that can be written: {error}")
        return group / "cgroup.procs"

    yield make
    for group in made:
        deadline = time.monotonic() + 10
        while (group / "cgroup.procs").read_text(encoding="ascii") and time.monotonic() < deadline:
            pass  # a runner that has said its last word may need a moment to leave
        group.rmdir()
