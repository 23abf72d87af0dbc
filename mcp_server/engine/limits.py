"""What this process may use and how much memory it has used at most."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from mcp_server.system.machine import anon_bytes
from mcp_server.system.repeating import repeating

_M_MMAP_THRESHOLD = -3


def usable_cores() -> int:
    """The cores this process may run on, which a container can make fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def give_back_freed_memory() -> None:
    """Let every large buffer return to the system when it is freed.

    glibc keeps freed buffers of up to 32 MB in its heap once it has seen some of that size (mallopt(3), M_MMAP_THRESHOLD), and
    matrices that grow and shrink then leave it half empty: a truncated SVD at rank 256 held 232 MB with that, 152 MB without, in
    the same time. Other C libraries are left as they are.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, 128 * 1024)


class PeakMeter:
    """The most anonymous memory seen by calls of `sample`. Buffers only grow, so sampling once a tensor is enough."""

    def __init__(self) -> None:
        self.peak: int | None = None

    def sample(self) -> int:
        """Look now; returns the peak so far in bytes."""
        self.peak = max(self.peak or 0, anon_bytes())
        return self.peak

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Sample 50 times a second from a thread: for work that frees what it held before it can be asked."""
        with repeating(self.sample, 0.02):
            yield
