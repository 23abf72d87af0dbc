"""The output files: reserved whole, then filled at final offsets, in any order, from any thread.

A background thread keeps pushing finished tensors to the disk and tells the journal once they are there. So the disk works while
the processors do, little is dirty in the page cache at any time, and what the journal says is true after a power cut.
"""

from __future__ import annotations

import errno
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np

from mcp_server.core.errors import DiskFull
from mcp_server.engine.layout import Layout

Array = np.ndarray[Any, Any]

BATCH_BYTES: Final = 128 << 20
"""Weights written between two syncs to disk: what a kill can cost, and what may be dirty."""


class Writer:
    """`on_disk(tensors)` is called from the background thread with the numbers of tensors whose bytes are safe."""

    def __init__(self, folder: Path, layout: Layout, on_disk: Callable[[list[int]], None], *, keep: bool, forget: bool) -> None:
        self.layout, self._on_disk = layout, on_disk
        self._forget = forget and hasattr(os, "posix_fadvise")
        folder.mkdir(parents=True, exist_ok=True)
        _check_space(folder, layout, keep)
        self._files = [_reserve(folder / shard.file, shard.header, shard.file_bytes, keep) for shard in layout.shards]
        self._pending: list[int] = []
        self._pending_bytes = 0
        self._wake = threading.Condition()
        self._closing = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._flush_loop, name="flush", daemon=True)
        self._thread.start()

    def write(self, tensor: int, offset: int, raw: Array) -> None:
        """Write bytes at `offset` (bytes) within a tensor."""
        place = self.layout.places[tensor]
        view, position = memoryview(raw.data), place.offset + offset
        try:
            while view:
                count = os.pwrite(self._files[place.shard], view, position)
                view, position = view[count:], position + count
        except OSError as error:
            raise _disk_error(error, self.layout.shards[place.shard].file) from error

    def finished(self, tensor: int) -> None:
        """All bytes of a tensor are written; sync it soon."""
        with self._wake:
            if self._error:
                raise self._error
            self._pending.append(tensor)
            self._pending_bytes += self.layout.places[tensor].nbytes
            if self._pending_bytes >= BATCH_BYTES:
                self._wake.notify()

    def close(self) -> None:
        """Sync what is left; every tensor is on disk and in the journal when this returns."""
        self._stop()
        for file in self._files:
            os.fsync(file)
            os.close(file)
        if self._error:
            raise self._error

    def abandon(self) -> None:
        """After a failure: stop the thread and close the files; what the journal knows stays true."""
        self._stop()
        for file in self._files:
            os.close(file)

    def _stop(self) -> None:
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join()

    def _flush_loop(self) -> None:
        try:
            while True:
                with self._wake:
                    self._wake.wait_for(lambda: self._closing or self._pending_bytes >= BATCH_BYTES)
                    batch, self._pending, self._pending_bytes = self._pending, [], 0
                    last = self._closing
                if batch:
                    self._sync(batch)
                if last:
                    return
        except OSError as error:
            self._error = _disk_error(error, "the output")

    def _sync(self, batch: list[int]) -> None:
        places = [self.layout.places[tensor] for tensor in batch]
        for shard in sorted({place.shard for place in places}):
            getattr(os, "fdatasync", os.fsync)(self._files[shard])
        self._on_disk(batch)
        if self._forget:
            for place in places:
                os.posix_fadvise(self._files[place.shard], place.offset, place.nbytes, os.POSIX_FADV_DONTNEED)


def _check_space(folder: Path, layout: Layout, keep: bool) -> None:
    there = sum((folder / shard.file).stat().st_blocks * 512 for shard in layout.shards if (folder / shard.file).exists())
    needed = layout.file_bytes - (there if keep else 0)
    free = shutil.disk_usage(folder).free + (0 if keep else there)
    if needed > free:
        raise DiskFull(
            f"the output needs {layout.file_bytes / 1e9:.2f} GB, {folder} has {free / 1e9:.2f} GB free: "
            f"{(needed - free) / 1e9:.2f} GB too little",
            "free that much, or write to another disk",
        )


def _reserve(path: Path, header: bytes, file_bytes: int, keep: bool) -> int:
    file = os.open(path, os.O_RDWR | os.O_CREAT | (0 if keep else os.O_TRUNC), 0o644)
    try:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file, 0, file_bytes)
        else:
            os.ftruncate(file, file_bytes)
        os.pwrite(file, header, 0)
    except OSError as error:
        os.close(file)
        raise _disk_error(error, path.name) from error
    return file


def _disk_error(error: OSError, what: str) -> BaseException:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFull(f"the disk filled up while writing {what}: {error.strerror}", "free space, then resume the job")
    return error
