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
from mcp_server.engine.unpack import gathered, ggml, kernels
from mcp_server.errors import InputChanged
from mcp_server.formats.gathered import Gathered
from mcp_server.formats.quantised.bitsandbytes import Codebook, RowScaledInt8
from mcp_server.formats.quantised.fp4 import UNITS_HELD, Float4, TurnedFloat4
from mcp_server.formats.quantised.ggml import Ggml
from mcp_server.formats.quantised.integers import PackedColumns, PackedGemv, PackedRows
from mcp_server.formats.quantised.part import Packing, Part
from mcp_server.formats.quantised.scaled import Float8, Scaled

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
        return exponents()[raw].reshape(part.shape)
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


def exponents() -> Array:
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
        self.table = float8_table(packing.codes.dtype)

    def fill(self, read: Read, start: int, out: Array) -> None:
        block, first = _rows(self.packing, start, out)
        codes = read(self.packing.codes, start, out.size).reshape(block.shape)
        kernels.by_byte(codes, self.table, self.scale, self.per_matrix, first, *self.packing.block, block)


class _Float8:
    """Every code is its own number."""

    def __init__(self, packing: Float8, _read: Read) -> None:
        self.codes, self.table = packing.codes, float8_table(packing.codes.dtype)

    def fill(self, read: Read, start: int, out: Array) -> None:
        out[:] = self.table[read(self.codes, start, out.size)]


class _ScaledIntegers:
    """int8: the scales of each row, and its zero points."""

    def __init__(self, packing: Scaled, read: Read) -> None:
        self.packing, (high, self.wide) = packing, packing.block
        height, across = packing.shape[-2], packing.columns // self.wide
        if packing.columns % self.wide:
            raise TypeError("int8 scales are by row or by equal groups of a row")

        def each_row(values: Array) -> Array:
            return np.ascontiguousarray(
                values.reshape(-1, -(-height // high), across).repeat(high, 1)[:, :height].reshape(-1, across)
            )

        self.scale = each_row(_floats(packing.scale, read))
        zero = _integers(packing.zero, read).astype(np.int32) if packing.zero else np.zeros(packing.scale.shape, np.int32)
        self.zero = each_row(zero)

    def fill(self, read: Read, start: int, out: Array) -> None:
        block, first = _rows(self.packing, start, out)
        codes = read(self.packing.codes, start, out.size).view(np.int8).reshape(block.shape)
        kernels.bytes_with_zero(codes, self.zero, self.scale, first, self.wide, block)


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
                self._experts[number] = (
                    kernels.turned(codes.reshape(outputs, inputs // 2)),
                    exponents()[scale].reshape(outputs, inputs // 32).T.copy(),
                )
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


class _Integers:
    """Codes along the rows, with scale and zero point (rows or one, groups), and the group of each column where it is stored."""

    def __init__(self, packing: PackedRows | PackedColumns | PackedGemv, scale: Array, zero: Array, read: Read) -> None:
        self.bits, self.columns = packing.bits, packing.columns
        self.scale, self.zero = np.ascontiguousarray(scale), np.ascontiguousarray(zero, np.int32)
        groups, order = self.scale.shape[1], None if isinstance(packing, PackedGemv) else packing.order
        self.size = self.columns // groups if order is None else 0
        self.group = np.arange(self.columns) // max(1, self.size) if order is None else _order(order, groups, read)

    def fill(self, words: Array, first: int, out: Array) -> None:
        """`words` (rows, ·) uint32 of rows `first` …."""
        where = (self.zero, self.scale, first, self.size, out)
        if self.bits == 4 and self.size and self.size % 2 == 0:
            kernels.nibbles_with_zero(words.view(np.uint8), *where)
        elif self.bits == 8 and self.size:
            kernels.bytes_with_zero(words.view(np.uint8), *where)
        else:
            kernels.words_with_zero(words, self.bits, self.zero, self.scale, self.group, first, out)


class _PackedRows:
    def __init__(self, packing: PackedRows, read: Read) -> None:
        self.packing, scale = packing, _floats(packing.scale, read)
        middle = 1 << (packing.bits - 1)  # codes are stored plus this
        if packing.zero is None:
            zero = np.full(scale.shape, middle, np.int32)
        elif packing.zero.dtype == "I8":
            zero = _integers(packing.zero, read).astype(np.int32) + middle
        else:  # packed down the rows, and stored plus `middle` too
            words = _whole(packing.zero, read).view(np.uint32).reshape(packing.zero.shape)
            zero = _unpacked(words.T, packing.bits)[:, : scale.shape[0]].T
        self.numbers = _Integers(packing, scale, zero, read)
        self.row_bytes = packing.codes.shape[1] * 4

    def fill(self, read: Read, start: int, out: Array) -> None:
        block, first = _rows(self.packing, start, out)
        words = read(self.packing.codes, first * self.row_bytes, len(block) * self.row_bytes).view(np.uint32)
        self.numbers.fill(words.reshape(len(block), -1), first, block)


class _PackedGemv:
    def __init__(self, packing: PackedGemv, read: Read) -> None:
        self.packing, groups = packing, packing.groups
        zero = _unpacked(_whole(packing.zero, read).view(np.uint32).reshape(packing.zero.shape), packing.bits)
        self.numbers = _Integers(packing, _floats(packing.scale, read)[:, :groups], zero[:, :groups], read)
        self.row_bytes = packing.codes.shape[1] * 4

    def fill(self, read: Read, start: int, out: Array) -> None:
        block, first = _rows(self.packing, start, out)
        words = read(self.packing.codes, first * self.row_bytes, len(block) * self.row_bytes).view(np.uint32)
        self.numbers.fill(words.reshape(len(block), -1), first, block)


class _PackedColumns:
    def __init__(self, packing: PackedColumns, read: Read) -> None:
        self.packing = packing
        words = _whole(packing.codes, read).view(np.uint32).reshape(packing.codes.shape)
        self.words = kernels.turned(words)
        zero = _unpacked(_whole(packing.zero, read).view(np.uint32).reshape(packing.zero.shape), packing.bits)
        if packing.interleaved:
            zero = zero.reshape(len(zero), -1, 8)[:, :, AWQ_PLACES].reshape(zero.shape)
        zero = zero.astype(np.int32)
        if packing.added:  # all ones stand for zero: the writer took one from it and kept the low bits
            zero = (zero + packing.added) & ((1 << packing.bits) - 1)
        self.numbers = _Integers(packing, _floats(packing.scale, read).T, zero.T, read)

    def fill(self, read: Read, start: int, out: Array) -> None:  # noqa: ARG002 (all codes are held)
        block, first = _rows(self.packing, start, out)
        if self.packing.interleaved:
            numbers = self.numbers
            words = self.words.view(np.int32)
            kernels.interleaved_with_zero(words, AWQ_PLACES, numbers.zero, numbers.scale, first, numbers.size, block)
        else:
            self.numbers.fill(self.words[first : first + len(block)], first, block)


def _rows(packing: Packing, start: int, out: Array) -> tuple[Array, int]:
    """`out` as rows of the weight, and the first row's number."""
    return out.reshape(-1, packing.columns), start // packing.columns


def _unpacked(words: Array, bits: int) -> Array:
    """(rows, words) to (rows, words · 32/bits) codes, the first in the lowest bits; a code may end in the next word."""
    stream = np.unpackbits(np.ascontiguousarray(words).view(np.uint8), axis=1, bitorder="little")
    stream = stream[:, : stream.shape[1] // bits * bits].reshape(words.shape[0], -1, bits)
    codes = stream[:, :, 0].astype(np.uint32)
    for place in range(1, bits):
        codes |= stream[:, :, place].astype(np.uint32) << np.uint32(place)
    return codes


def _order(order: Part, groups: int, read: Read) -> Array:
    """The group of each input column."""
    found = _integers(order, read).astype(np.int64)
    if found.min() < 0 or found.max() >= groups:  # it was checked with the header; compiled loops check no bounds
        raise InputChanged(f"{order.name} in {order.file} has changed since it was checked", "start again")
    return found


def _open_scaled(packing: Scaled, read: Read) -> Weight:
    return _ScaledIntegers(packing, read) if packing.codes.dtype == "I8" else _Scaled(packing, read)


_OPENERS: Final[dict[type[Packing], Callable[[Any, Read], Weight]]] = {
    Codebook: _Codebook,
    RowScaledInt8: _RowScaled,
    Scaled: _open_scaled,
    Float8: _Float8,
    Float4: _Float4,
    TurnedFloat4: _TurnedFloat4,
    PackedRows: _PackedRows,
    PackedColumns: _PackedColumns,
    PackedGemv: _PackedGemv,
    Ggml: lambda packing, _read: ggml.Weight(packing),
    Gathered: lambda packing, read: gathered.Weight(packing, read, open_weight),
}
