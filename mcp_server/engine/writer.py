"""The output files: reserved whole, then filled at final offsets, in any order, from any thread.

Computing threads hand over blocks in page-aligned buffers; two threads write them, past the page cache where the system allows it
(Linux, whole pages), so that a merge neither fills memory with its output nor pushes its inputs out of it. A third thread
syncs finished tensors and then tells the journal. So the disk works while the processors do, and what the journal says is
true after a power cut.
"""

from __future__ import annotations

import errno
import mmap
import os
import queue
import shutil
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import numpy as np

from mcp_server.engine.layout import PAGE, Layout, Shard
from mcp_server.errors import DiskFull

Array = np.ndarray[Any, Any]

BATCH_BYTES: Final = 128 << 20
"""Weights written between two syncs to disk: what a kill can cost."""
WRITING_THREADS: Final = 2


class Writer:
    """`on_disk(tensors)` is called from the background thread with the numbers of tensors whose bytes are safe.

    `buffers` of `buffer_bytes` each are all there are: who computes faster than the disk writes waits in `buffer()`. `shards`
    are the numbers of the files to write; nobody touches the others here.
    """

    def __init__(
        self,
        folder: Path,
        layout: Layout,
        on_disk: Callable[[list[int]], None],
        *,
        keep: bool,
        buffers: int,
        buffer_bytes: int,
        shards: Sequence[int],
    ) -> None:
        self.layout, self._on_disk = layout, on_disk
        folder.mkdir(parents=True, exist_ok=True)
        files = {number: layout.shards[number] for number in shards}
        require_space(folder, list(files.values()), keep)
        self._files = {n: _reserve(folder / shard.file, shard.header, shard.file_bytes, keep) for n, shard in files.items()}
        self._direct = {n: _open_direct(folder / shard.file) for n, shard in files.items()}
        self._free: queue.SimpleQueue[Array] = queue.SimpleQueue()
        for _ in range(buffers):
            self._free.put(np.frombuffer(mmap.mmap(-1, max(buffer_bytes, PAGE)), np.uint8))
        self._writers = ThreadPoolExecutor(WRITING_THREADS, "write")
        self._state = threading.Condition()
        numbers = [number for number, place in enumerate(layout.places) if place.shard in files]
        self._open_blocks = dict.fromkeys(numbers, 1)  # a tensor itself counts until `finished`
        self._pending: list[int] = []
        self._pending_bytes = 0
        self._closing = False
        self._error: BaseException | None = None
        self._flusher = threading.Thread(target=self._flush_loop, name="flush", daemon=True)
        self._flusher.start()

    def buffer(self) -> Array:
        """A free page-aligned buffer (uint8); `write` takes it over."""
        if self._error:
            raise self._error
        return self._free.get()

    def write(self, tensor: int, offset: int, buffer: Array, count: int) -> None:
        """Write the first `count` bytes of `buffer` at byte `offset` of a tensor, some time soon."""
        with self._state:
            self._open_blocks[tensor] += 1
        self._writers.submit(self._write, tensor, offset, buffer, count)

    def finished(self, tensor: int) -> None:
        """All blocks of a tensor are handed over; sync it once they are written."""
        if self._error:
            raise self._error
        self._settle(tensor)

    def close(self) -> None:
        """Sync what is left; every tensor is on disk and in the journal when this returns."""
        self._stop()
        if self._error:
            raise self._error

    def abandon(self) -> None:
        """After a failure: stop the threads and close the files; what the journal knows stays true."""
        self._stop()

    def _write(self, tensor: int, offset: int, buffer: Array, count: int) -> None:
        place = self.layout.places[tensor]
        position = place.offset + offset
        direct = self._direct[place.shard]
        whole_pages = position % PAGE == 0 and count % PAGE == 0
        file = direct if direct is not None and whole_pages else self._files[place.shard]
        try:
            view = memoryview(buffer.data)[:count]
            while view:
                written = os.pwrite(file, view, position)
                view, position = view[written:], position + written
                file = self._files[place.shard]  # the rest of a short write need not be whole pages
        except OSError as error:
            self._error = _disk_error(error, self.layout.shards[place.shard].file)
        finally:
            self._free.put(buffer)
        self._settle(tensor)

    def _settle(self, tensor: int) -> None:
        with self._state:
            self._open_blocks[tensor] -= 1
            if self._open_blocks[tensor] == 0 and self._error is None:
                self._pending.append(tensor)
                self._pending_bytes += self.layout.places[tensor].nbytes
                if self._pending_bytes >= BATCH_BYTES:
                    self._state.notify()

    def _stop(self) -> None:
        self._writers.shutdown()
        with self._state:
            self._closing = True
            self._state.notify()
        self._flusher.join()
        for file in [*self._files.values(), *self._direct.values()]:
            if file is not None:
                os.close(file)

    def _flush_loop(self) -> None:
        try:
            while True:
                with self._state:
                    self._state.wait_for(lambda: self._closing or self._pending_bytes >= BATCH_BYTES)
                    batch, self._pending, self._pending_bytes = self._pending, [], 0
                    last = self._closing
                if batch:
                    for shard in sorted({self.layout.places[tensor].shard for tensor in batch}):
                        getattr(os, "fdatasync", os.fsync)(self._files[shard])
                    self._on_disk(batch)
                if last:
                    return
        except OSError as error:
            self._error = _disk_error(error, "the output")


def require_space(folder: Path, shards: Sequence[Shard], keep: bool) -> None:
    """Raise `DiskFull` unless these files fit beside what is in `folder`; with `keep`, what is there of them counts."""
    file_bytes = sum(shard.file_bytes for shard in shards)
    there = sum((folder / shard.file).stat().st_blocks * 512 for shard in shards if (folder / shard.file).exists())
    needed = file_bytes - (there if keep else 0)
    free = shutil.disk_usage(folder).free + (0 if keep else there)
    if needed > free:
        raise DiskFull(
            f"the output needs {file_bytes / 1e9:.2f} GB, {folder} has {free / 1e9:.2f} GB free: "
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


def _open_direct(path: Path) -> int | None:
    """A handle that bypasses the page cache, or None where the platform or the file system has no such thing."""
    if not hasattr(os, "O_DIRECT"):
        return None
    try:
        return os.open(path, os.O_WRONLY | os.O_DIRECT)
    except OSError:
        return None


def _disk_error(error: OSError, what: str) -> BaseException:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFull(f"the disk filled up while writing {what}: {error.strerror}", "free space, then resume the job")
    return error
