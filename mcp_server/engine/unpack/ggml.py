"""ggml's blocks as float32, row by row, with what a converter did to the rows undone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from mcp_server.engine.codecs import decode
from mcp_server.engine.unpack import ggml_kernels
from mcp_server.formats.quantised.ggml import SIZES, STEP, Ggml
from mcp_server.formats.quantised.part import Part

Array = np.ndarray[Any, Any]


class Weight:
    """Holds nothing between blocks. Rows of interleaved heads are read by whole heads."""

    def __init__(self, packing: Ggml) -> None:
        self.packing = packing

    def fill(self, read: Callable[[Part, int, int], Array], start: int, out: Array) -> None:
        packing = self.packing
        block = out.reshape(-1, packing.row)
        first, count = start // packing.row, len(block)
        if packing.heads:
            size = packing.head_rows
            begin, end = first // size * size, -(-(first + count) // size) * size
            whole = np.empty((end - begin, packing.row), np.float32)
            self._rows(read, begin, whole)
            block[:] = whole[_places(np.arange(first, first + count), size) - begin]
        else:
            self._rows(read, first, block)
        if packing.added:
            block -= np.float32(packing.added)

    def _rows(self, read: Callable[[Part, int, int], Array], first: int, out: Array) -> None:
        """Stored rows `first` …, a bounded number at a time."""
        packing = self.packing
        step = max(1, STEP // packing.row)
        for done in range(0, len(out), step):
            part = out[done : done + step]
            raw = read(packing.codes, (first + done) * packing.row_bytes, len(part) * packing.row_bytes)
            unpack(raw, packing.type, part)


def _places(row: Array, size: int) -> Array:
    """Where rows of the weight are stored: each head's two halves alternate."""
    head, inside = np.divmod(row, size)
    half, place = np.divmod(inside, size // 2)
    places: Array = head * size + 2 * place + half
    return places


def unpack(raw: Array, kind: str, out: Array) -> None:
    """Bytes of whole blocks to the float32 values of `out`, in order."""
    values, size = SIZES[kind]
    if values == 1:
        decode(raw, kind, out.reshape(-1))
        return
    if ggml_kernels.unpack(raw.reshape(-1, size), kind, out.reshape(-1, values)):
        return
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    out[:] = dequantize(raw, GGMLQuantizationType[kind]).reshape(out.shape)
