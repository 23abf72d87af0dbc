"""Packed weights as float32, block by block: scales are read once a weight, codes as blocks need them.

`open_weight` reads what every block of a weight needs; the opened weight then fills blocks from any thread. Blocks are whole
rows, as everywhere in the engine. GPTQ and AWQ pack across the rows of the weight, so their codes are held while the weight is
read; gpt-oss' experts are turned, and are held one expert at a time. The formats are described in `formats.quantised`.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Final, Protocol

import numpy as np

from mcp_server.engine.codecs import decode
from mcp_server.engine.unpack import kernels
from mcp_server.errors import InputChanged
from mcp_server.formats.quantised.bitsandbytes import Codebook, RowScaledInt8
from mcp_server.formats.quantised.fp4 import UNITS_HELD, Float4, TurnedFloat4
from mcp_server.formats.quantised.integers import WORD, PackedColumns, PackedRows
from mcp_server.formats.quantised.part import Packing, Part
from mcp_server.formats.quantised.scaled import Scaled

Array = np.ndarray[Any, Any]
Read = Callable[[Part, int, int], Array]
"""(part, first byte, bytes) → uint8."""

E2M1: Final = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
AWQ_PLACES: Final = np.array([0, 4, 1, 5, 2, 6, 3, 7], np.int64)
_BYTES: Final = np.arange(256)


class Weight(Protocol):
    """An opened weight."""

    def fill(self, read: Read, start: int, out: Array) -> None:
        """Elements `start` … `start + out.size` of the flattened weight into `out`; `read` may reuse its buffer."""


def open_weight(packing: Packing, read: Read) -> Weight:
    """Read the scales of a packed weight. `read` must return arrays of their own."""
    for kind, opener in _OPENERS.items():
        if isinstance(packing, kind):
            return opener(packing, read)
    raise TypeError(f"no reader for {type(packing).__name__}")


def _whole(part: Part, read: Read) -> Array:
    return read(part, 0, part.nbytes)


def _floats(part: Part, read: Read) -> Array:
    """A part of floating-point scales as float32, in its shape."""
    raw = _whole(part, read)
    if part.dtype in ("U8", "F8_E8M0"):
        return _exponents()[raw].reshape(part.shape)
    if part.dtype in ("F8_E4M3", "F8_E5M2"):
        return float8_table(part.dtype)[raw].reshape(part.shape)
    out = np.empty(part.elements, np.float32)
    decode(raw, part.dtype, out)
    return out.reshape(part.shape)


def _integers(part: Part, read: Read) -> Array:
    kinds = {"I8": np.int8, "I32": np.int32, "I64": np.int64}
    return _whole(part, read).view(kinds[part.dtype]).reshape(part.shape)


def float8_table(dtype: str) -> Array:
    """The value of each of the 256 codes of an 8-bit float: E5M2 is the upper half of a float16; E4M3 has no infinity."""
    if dtype == "F8_E5M2":
        return (_BYTES.astype(np.uint16) << 8).view(np.float16).astype(np.float32)
    exponent, mantissa = (_BYTES >> 3) & 15, _BYTES & 7
    size = np.where(exponent == 0, mantissa / 8 * 2.0**-6, (1 + mantissa / 8) * 2.0 ** (exponent - 7.0))
    values = np.where(_BYTES & 128, -size, size)
    return np.where((_BYTES & 127) == 127, np.nan, values).astype(np.float32)


def _exponents() -> Array:
    """2^(byte − 127); 255 is not a number."""
    values: Array = np.ldexp(np.float32(1), (np.minimum(_BYTES, 254) - 127).astype(np.int32))
    values[255] = np.nan
    return values


class _Codebook:
    def __init__(self, packing: Codebook, read: Read) -> None:
        self.packing = packing
        table = _floats(packing.table, read)
        self.high, self.low = table[_BYTES >> 4], table[_BYTES & 15]
        if (nested := packing.nested) is None:
            self.absmax = _floats(packing.absmax, read)
        else:
            codes, scale = _whole(packing.absmax, read), _floats(nested.absmax, read)
            absmax = _floats(nested.table, read)[codes]
            for begin in range(0, absmax.size, nested.block):
                absmax[begin : begin + nested.block] *= scale[begin // nested.block]
            absmax += np.float32(nested.offset)
            self.absmax = absmax

    def fill(self, read: Read, start: int, out: Array) -> None:
        first, last = start >> 1, (start + out.size + 1) >> 1
        codes = read(self.packing.codes, first, last - first)
        kernels.codebook(codes, self.high, self.low, self.absmax, self.packing.block, start, out)


class _RowScaled:
    def __init__(self, packing: RowScaledInt8, read: Read) -> None:
        self.packing, self.scale = packing, _floats(packing.scale, read)

    def fill(self, read: Read, start: int, out: Array) -> None:
        block, first = _rows(self.packing, start, out)
        codes = read(self.packing.codes, start, out.size).view(np.int8)
        kernels.row_scaled(codes.reshape(block.shape), self.scale, first, block)


class _Scaled:
    def __init__(self, packing: Scaled, read: Read) -> None:
        self.packing = packing
        high, wide = packing.block
        self.per_matrix = packing.shape[-2]
        grid = (-1, -(-self.per_matrix // high), -(-packing.columns // wide))
        self.scale = _floats(packing.scale, read).reshape(grid)
        self.zero = _integers(packing.zero, read).reshape(grid) if packing.zero else None
        self.table = (
            _BYTES.astype(np.int8).astype(np.float32) if packing.codes.dtype == "I8" else float8_table(packing.codes.dtype)
        )

    def fill(self, read: Read, start: int, out: Array) -> None:
        block, first = _rows(self.packing, start, out)
        codes = read(self.packing.codes, start, out.size).reshape(block.shape)
        where = (self.per_matrix, first, *self.packing.block, block)
        if self.zero is None:
            kernels.by_byte(codes, self.table, self.scale, *where)
        else:
            kernels.by_byte_with_zero(codes.view(np.int8), self.zero, self.scale, *where)


class _Float4:
    def __init__(self, packing: Float4, read: Read) -> None:
        self.packing = packing
        self.low, self.high = E2M1[_BYTES & 15], E2M1[_BYTES >> 4]
        scale = _floats(packing.scale, read)
        if packing.overall is not None:
            overall = np.float32(_floats(packing.overall, read).reshape(()))
            scale = scale / overall if packing.divides else scale * overall
        self.scale = scale

    def fill(self, read: Read, start: int, out: Array) -> None:
        block, first = _rows(self.packing, start, out)
        codes = read(self.packing.codes, start // 2, out.size // 2).reshape(block.shape[0], -1)
        kernels.nibbles(codes, self.low, self.high, self.scale, first, self.packing.group, block)


class _TurnedFloat4:
    """Keeps the last few experts that were read; threads are rarely more than one expert apart."""

    def __init__(self, packing: TurnedFloat4, read: Read) -> None:
        self.packing, self._fresh = packing, read
        self._experts: OrderedDict[int, tuple[Array, Array]] = OrderedDict()
        self._lock = threading.Lock()

    def _expert(self, number: int) -> tuple[Array, Array]:
        with self._lock:
            if number not in self._experts:
                experts, inputs, outputs = self.packing.shape
                codes, scale = (
                    self._fresh(part, number * (part.nbytes // experts), part.nbytes // experts)
                    for part in (self.packing.codes, self.packing.scale)
                )
                self._experts[number] = (codes.reshape(outputs, inputs // 2), _exponents()[scale].reshape(outputs, inputs // 32))
                while len(self._experts) > UNITS_HELD:
                    self._experts.popitem(last=False)
            return self._experts[number]

    def fill(self, read: Read, start: int, out: Array) -> None:  # noqa: ARG002 (whole experts are held)
        block, first = _rows(self.packing, start, out)
        inputs, done = self.packing.shape[1], 0
        while done < len(block):
            expert, row = divmod(first + done, inputs)
            count = min(inputs - row, len(block) - done)
            codes, scale = self._expert(expert)
            kernels.nibbles_turned(codes, E2M1, scale, row, block[done : done + count])
            done += count


class _PackedRows:
    def __init__(self, packing: PackedRows, read: Read) -> None:
        self.packing, self.scale = packing, _floats(packing.scale, read)
        middle = 1 << (packing.bits - 1)  # codes are stored plus this
        if packing.zero is None:
            self.zero = np.full(self.scale.shape, middle, np.int32)
        elif packing.zero.dtype == "I8":
            self.zero = _integers(packing.zero, read).astype(np.int32) + middle
        else:  # packed down the rows, and stored plus `middle` too
            words = _whole(packing.zero, read).view(np.uint32).reshape(packing.zero.shape)
            self.zero = _unpacked(words.T, packing.bits)[:, : self.scale.shape[0]].T.astype(np.int32, order="C")
        self.group = _groups(packing.order, packing.columns, self.scale.shape[1], read)
        self.row_bytes = packing.codes.shape[1] * 4

    def fill(self, read: Read, start: int, out: Array) -> None:
        block, first = _rows(self.packing, start, out)
        words = read(self.packing.codes, first * self.row_bytes, len(block) * self.row_bytes).view(np.uint32)
        kernels.words_along_rows(
            words.reshape(len(block), -1), self.packing.bits, self.zero, self.scale, self.group, first, block
        )


class _PackedColumns:
    def __init__(self, packing: PackedColumns, read: Read) -> None:
        self.packing = packing
        self.words = _whole(packing.codes, read).view(np.uint32).reshape(packing.codes.shape)
        self.scale = _floats(packing.scale, read)
        zero = _unpacked(_whole(packing.zero, read).view(np.uint32).reshape(packing.zero.shape), packing.bits)
        if packing.interleaved:
            zero = zero.reshape(len(zero), -1, 8)[:, :, AWQ_PLACES].reshape(zero.shape)
        # a v1 zero point of all ones stands for zero: the writer took one from it and kept the low bits
        self.zero = np.ascontiguousarray(
            (zero.astype(np.int32) + packing.added) & ((1 << packing.bits) - 1 if packing.added else -1)
        )
        self.group = _groups(packing.order, packing.columns, self.scale.shape[0], read)

    def fill(self, read: Read, start: int, out: Array) -> None:  # noqa: ARG002 (all codes are held)
        block, first = _rows(self.packing, start, out)
        if self.packing.interleaved:
            kernels.words_interleaved(self.words, AWQ_PLACES, self.zero, self.scale, self.group, first, block)
        else:
            kernels.words_down_columns(self.words, self.packing.bits, self.zero, self.scale, self.group, first, block)


def _rows(packing: Packing, start: int, out: Array) -> tuple[Array, int]:
    """`out` as rows of the weight, and the first row's number."""
    return out.reshape(-1, packing.columns), start // packing.columns


def _unpacked(words: Array, bits: int) -> Array:
    """(rows, words) to (rows, words · 32/bits) codes, the first in the lowest bits."""
    shifts = np.arange(0, WORD, bits, dtype=np.uint32)
    return ((words[:, :, None] >> shifts) & np.uint32((1 << bits) - 1)).reshape(words.shape[0], -1)


def _groups(order: Part | None, columns: int, groups: int, read: Read) -> Array:
    """The group of each input column; as many equal ones as there are scales unless an order is stored."""
    if order is None:
        return np.arange(columns) // (columns // groups)
    found = _integers(order, read).astype(np.int64)
    if found.min() < 0 or found.max() >= groups:  # it was checked with the header; compiled loops check no bounds
        raise InputChanged(f"{order.name} in {order.file} has changed since it was checked", "start again")
    return found


_OPENERS: Final[dict[type[Packing], Callable[[Any, Read], Weight]]] = {
    Codebook: _Codebook,
    RowScaledInt8: _RowScaled,
    Scaled: _Scaled,
    Float4: _Float4,
    TurnedFloat4: _TurnedFloat4,
    PackedRows: _PackedRows,
    PackedColumns: _PackedColumns,
}
