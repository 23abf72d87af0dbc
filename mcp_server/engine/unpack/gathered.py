"""Rows of several tensors in another order, block by block: runs of neighbouring rows are read at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from mcp_server.engine.codecs import decode
from mcp_server.formats.gathered import AVERAGE, MEAN, ZERO, Gathered, as_part
from mcp_server.formats.quantised.part import Packing, Part
from mcp_server.formats.tensors import ITEM_BYTES, StoredTensor

Array = np.ndarray[Any, Any]
Read = Callable[[Part, int, int], Array]
_ROWS = 256
"""Rows that are read at a time for the mean of all."""


class Filled(Protocol):
    def fill(self, read: Read, start: int, out: Array) -> None: ...


class Weight:
    def __init__(self, packing: Gathered, read: Read, open_packed: Callable[[Packing, Read], Filled]) -> None:
        self.packing = packing
        self.opened = [open_packed(tensor.packed, read) if tensor.packed else None for tensor in packing.tensors]
        self.which = np.array(packing.which, np.int32)
        self.rows = np.array(packing.rows_of, np.int64)
        self.mean = self._mean(read) if (self.which == MEAN).any() else np.zeros(packing.columns, np.float32)

    def fill(self, read: Read, start: int, out: Array) -> None:
        block = out.reshape(-1, self.packing.columns)
        self._fill(read, start // self.packing.columns, block)

    def _fill(self, read: Read, first: int, block: Array) -> None:
        which, rows = self.which[first : first + len(block)], self.rows[first : first + len(block)]
        breaks = (np.diff(which) != 0) | (np.diff(rows) != 1)
        starts = [0, *(np.flatnonzero(breaks) + 1).tolist()] if len(block) else []
        for begin, end in zip(starts, [*starts[1:], len(block)], strict=True):
            k, part = int(which[begin]), block[begin:end]
            if k >= 0:
                self._read(read, k, int(rows[begin]), part)
            elif k in (ZERO, MEAN):
                part[:] = self.mean if k == MEAN else 0
            else:
                assert k == AVERAGE
                for row in range(begin, end):
                    self._average(read, self.packing.averages[first + row], block[row : row + 1])

    def _average(self, read: Read, places: tuple[tuple[int, int], ...], out: Array) -> None:
        total, one = np.zeros(out.shape), np.empty(out.shape, np.float32)
        for k, row in places:
            self._read(read, k, row, one)
            total += one
        out[:] = total / len(places)

    def _read(self, read: Read, k: int, row: int, out: Array) -> None:
        """Neighbouring rows of one tensor."""
        tensor: StoredTensor = self.packing.tensors[k]
        start = row * self.packing.columns
        if (opened := self.opened[k]) is not None:
            opened.fill(read, start, out.reshape(-1))
            return
        size = ITEM_BYTES[tensor.dtype]
        decode(read(as_part(tensor), start * size, out.size * size), tensor.dtype, out.reshape(-1))

    def _mean(self, read: Read) -> Array:
        """Of the rows that stand for something else than the mean."""
        total, count = np.zeros(self.packing.columns), 0
        block = np.empty((_ROWS, self.packing.columns), np.float32)
        self.mean = np.zeros(self.packing.columns, np.float32)
        for first in range(0, len(self.which), _ROWS):
            part = block[: min(_ROWS, len(self.which) - first)]
            self._fill(read, first, part)
            known = self.which[first : first + len(part)] != MEAN
            total += part[known].sum(axis=0, dtype=np.float64)
            count += int(known.sum())
        return (total / max(1, count)).astype(np.float32)
