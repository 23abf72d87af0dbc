"""Block reads: the bytes of a tensor's block into a reused buffer, widened to float32.

Plain `pread` rather than mapped files: memory stays what the buffers are, and a file that was truncated after its header was
checked is a short read, an error with a name, where a mapped one would kill the process.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np

from mcp_server.engine.blocks import Block
from mcp_server.engine.codecs import decode, decode_difference, subtract
from mcp_server.engine.thread_pool import Workspace
from mcp_server.engine.unpack import Weight, open_weight
from mcp_server.errors import InputChanged, NotFound
from mcp_server.formats.quantised import Packing, Part
from mcp_server.formats.tensors import ITEM_BYTES, StoredTensor
from mcp_server.system.guard import open_checked

Array = np.ndarray[Any, Any]

_CAN_ADVISE: Final = hasattr(os, "posix_fadvise")


class Reader:
    """Open files, shared by all threads. `forget` says that read pages should leave the page cache once a tensor is done."""

    def __init__(self, *, forget: bool = False) -> None:
        self.forget = forget and _CAN_ADVISE
        self._files: dict[str, int] = {}
        self._weights: dict[int, tuple[Packing, Weight]] = {}  # by identity: hashing a packing costs more than a block's read
        self._lock = threading.Lock()
        self._opening = threading.Lock()

    def _file(self, path: Path) -> int:
        name = str(path)  # kept by the path; hashing the path itself costs more than the lock
        with self._lock:
            if name not in self._files:
                try:
                    self._files[name] = open_checked(path)
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
        """The stored bytes of elements `start` … `start + count` of a tensor that is not packed."""
        size = ITEM_BYTES[tensor.dtype]
        buffer = workspace.take("raw", count * size, np.uint8)
        self.bytes_into(tensor.file, tensor.offset + start * size, buffer)
        return buffer

    def values(self, tensor: StoredTensor, block: Block, workspace: Workspace, out: Array) -> None:
        """A block as float32 in `out`."""
        if tensor.packed is not None:
            self._weight(tensor.packed).fill(self._into(workspace), block.start, out)
            return
        decode(self.raw(tensor, block.start, block.count, workspace), tensor.dtype, out)

    def difference(self, tensor: StoredTensor, block: Block, workspace: Workspace, reference: Array, out: Array) -> int:
        """A block minus `reference` as float32 in `out`; returns how many of the differences are not finite."""
        if tensor.packed is not None:
            self.values(tensor, block, workspace, out)
            return int(subtract(out, reference))
        return decode_difference(self.raw(tensor, block.start, block.count, workspace), tensor.dtype, reference, out)

    def whole(self, tensor: StoredTensor) -> Array:
        """A whole (small) tensor as float32, in its shape."""
        if tensor.packed is not None:
            out = np.empty(tensor.count, np.float32)
            open_weight(tensor.packed, self._fresh).fill(self._fresh, 0, out)
            return out.reshape(tensor.shape)
        raw = np.empty(tensor.nbytes, np.uint8)
        self.bytes_into(tensor.file, tensor.offset, raw)
        out = np.empty(tensor.count, np.float32)
        decode(raw, tensor.dtype, out)
        return out.reshape(tensor.shape)

    def _weight(self, packing: Packing) -> Weight:
        """The opened weight; its scales are read by the first thread that asks and kept until `done_with`."""
        found = self._weights.get(id(packing))
        if found is None:
            with self._opening:
                found = self._weights.get(id(packing)) or (packing, open_weight(packing, self._fresh))
                self._weights[id(packing)] = found
        return found[1]

    def _fresh(self, part: Part, begin: int, count: int) -> Array:
        buffer = np.empty(count, np.uint8)
        self.bytes_into(part.file, part.offset + begin, buffer)
        return buffer

    def _into(self, workspace: Workspace) -> Callable[[Part, int, int], Array]:
        def read(part: Part, begin: int, count: int) -> Array:
            buffer = workspace.take("raw", count, np.uint8)
            self.bytes_into(part.file, part.offset + begin, buffer)
            return buffer

        return read

    def done_with(self, tensor: StoredTensor) -> None:
        """Drop what is held of a packed tensor; under a memory limit, give its pages back now: the kernel need not search."""
        if tensor.packed is not None:
            self._weights.pop(id(tensor.packed), None)
        if self.forget:
            parts = tensor.packed.parts if tensor.packed is not None else (tensor,)
            for part in parts:
                os.posix_fadvise(self._file(part.file), part.offset, part.nbytes, os.POSIX_FADV_DONTNEED)

    def close(self) -> None:
        for file in self._files.values():
            os.close(file)
        self._files.clear()
