"""What faults need: fake merges, small file systems, memory limits. A skip here is loud: it names what the machine lacks."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.fake_worker import FAKE
from tests.jobs.conftest import job, merge
from tests.jobs.watching import LONG

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


@dataclass(frozen=True)
class FailingDisk:
    """A mounted file system whose medium can be taken away under it: reads of what is not in memory then fail with EIO."""

    folder: Path
    image: Path

    def forget(self) -> None:
        """Mount it anew, so that nothing of it is in memory."""
        subprocess.run(["umount", str(self.folder)], check=True)
        subprocess.run(["mount", "-o", "loop", str(self.image), str(self.folder)], check=True)

    def lose_all_but(self, size: int) -> None:
        os.truncate(self.image, size)


@pytest.fixture
def failing_disk(tmp_path: Path) -> Iterator[Callable[[int], FailingDisk]]:
    """failing_disk(size_bytes). Needs root on Linux with loop devices and mkfs.ext4."""
    if os.geteuid() != 0 or sys.platform != "linux" or shutil.which("mkfs.ext4") is None:
        pytest.skip("a disk that fails needs root on Linux and mkfs.ext4")
    mounted: list[Path] = []

    def make(size: int) -> FailingDisk:
        disk = FailingDisk(tmp_path / "failing", tmp_path / "failing.img")
        disk.folder.mkdir()
        with disk.image.open("wb") as file:
            file.truncate(size)
        subprocess.run(["mkfs.ext4", "-q", str(disk.image)], check=True)
        done = subprocess.run(
            ["mount", "-o", "loop", str(disk.image), str(disk.folder)], capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            pytest.skip(f"this machine does not let root mount a file: {done.stderr.strip()}")
        mounted.append(disk.folder)
        return disk

    yield make
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
        deadline = time.monotonic() + LONG
        while (group / "cgroup.procs").read_text(encoding="ascii") and time.monotonic() < deadline:
            time.sleep(0.01)  # a runner that has said its last word may need a moment to leave
        group.rmdir()
