"""Block reads: the bytes of a tensor's block into a reused buffer, widened to float32.

Plain `pread` rather than mapped files: memory stays what the buffers are, and a file that was truncated after its header was
checked is a short read, an error with a name, where a mapped one would kill the process.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any, Final

import numpy as np

from mcp_server.engine.blocks import Block
from mcp_server.engine.codecs import decode, decode_difference
from mcp_server.engine.thread_pool import Workspace
from mcp_server.errors import InputChanged, NotFound
from mcp_server.formats.checkpoint import ITEM_BYTES, StoredTensor

Array = np.ndarray[Any, Any]

_CAN_ADVISE: Final = hasattr(os, "posix_fadvise")


class Reader:
    """Open files, shared by all threads. `forget` says that read pages should leave the page cache once a tensor is done."""

    def __init__(self, *, forget: bool = False) -> None:
        self.forget = forget and _CAN_ADVISE
        self._files: dict[str, int] = {}
        self._lock = threading.Lock()

    def _file(self, path: Path) -> int:
        name = str(path)  # kept by the path; hashing the path itself costs more than the lock
        with self._lock:
            if name not in self._files:
                try:
                    self._files[name] = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
                except FileNotFoundError as missing:
                    raise NotFound(f"{path} is gone", "put the file back and resume") from missing
            return self._files[name]

    def bytes_into(self, path: Path, offset: int, buffer: Array) -> None:
        """Fill `buffer` (uint8) from byte `offset` of the file."""
        file, view, done = self._file(path), memoryview(buffer.data), 0
        while done < len(view):
            try:
                count = os.preadv(file, [view[done:]], offset + done)
            except OSError as error:  # a descriptor's error does not say which file it was
                raise OSError(error.errno, error.strerror, str(path)) from error
            if count == 0:
                raise InputChanged(
                    f"{path} ends at byte {offset + done}, its header promised {offset + len(view)}",
                    "the file was truncated while it was read; restore it and start again",
                )
            done += count

    def raw(self, tensor: StoredTensor, start: int, count: int, workspace: Workspace) -> Array:
        """The stored bytes of elements `start` … `start + count`."""
        size = ITEM_BYTES[tensor.dtype]
        buffer = workspace.take("raw", count * size, np.uint8)
        self.bytes_into(tensor.file, tensor.offset + start * size, buffer)
        return buffer

    def values(self, tensor: StoredTensor, block: Block, workspace: Workspace, out: Array) -> None:
        """A block as float32 in `out`."""
        decode(self.raw(tensor, block.start, block.count, workspace), tensor.dtype, out)

    def difference(self, tensor: StoredTensor, block: Block, workspace: Workspace, reference: Array, out: Array) -> int:
        """A block minus `reference` as float32 in `out`; returns how many of the differences are not finite."""
        return decode_difference(self.raw(tensor, block.start, block.count, workspace), tensor.dtype, reference, out)

    def whole(self, tensor: StoredTensor) -> Array:
        """A whole (small) tensor as float32, in its shape."""
        raw = np.empty(tensor.nbytes, np.uint8)
        self.bytes_into(tensor.file, tensor.offset, raw)
        out = np.empty(tensor.count, np.float32)
        decode(raw, tensor.dtype, out)
        return out.reshape(tensor.shape)

    def done_with(self, tensor: StoredTensor) -> None:
        """Under a memory limit, give this tensor's pages back now instead of letting the kernel search for them."""
        if self.forget:
            os.posix_fadvise(self._file(tensor.file), tensor.offset, tensor.nbytes, os.POSIX_FADV_DONTNEED)

    def close(self) -> None:
        for file in self._files.values():
            os.close(file)
        self._files.clear()
