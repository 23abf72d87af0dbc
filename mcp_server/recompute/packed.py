"""Packed weights as float32, for checking merges of them: plain numpy, element by element, from the formats' own formulas.

The engine's compiled loops are what is checked, so nothing of them is used here; only the description of the stored parts is
shared (`formats.quantised`, whose docstrings give formulas and sources).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mcp_server.formats.quantised import Packing, Part
from mcp_server.formats.quantised.bitsandbytes import Codebook, RowScaledInt8
from mcp_server.formats.quantised.fp4 import Float4, TurnedFloat4
from mcp_server.formats.quantised.ggml import Ggml
from mcp_server.formats.quantised.integers import PackedColumns, PackedGemv, PackedRows
from mcp_server.formats.quantised.scaled import Float8, Scaled

Array = Any
"""A numpy array. (numpy's own types say Any of half the operations here.)"""

_E2M1 = np.array([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
_PLAIN: dict[str, Any] = {"F32": "<f4", "F16": "<f2", "U8": "u1", "I8": "i1", "I32": "<i4", "I64": "<i8"}


def unpacked_rows(packing: Packing, first: int, last: int) -> Array:
    """Rows of the weight's last dimension, (last − first, columns) float32."""
    if isinstance(packing, Ggml):
        return _ggml(packing, first, last)
    row, column = np.meshgrid(np.arange(first, last), np.arange(packing.columns), indexing="ij")
    return _values(packing, row, column).astype(np.float32)


def _values(packing: Packing, row: Array, column: Array) -> Array:
    if isinstance(packing, Codebook):
        return _codebook(packing, row * packing.columns + column)
    if isinstance(packing, RowScaledInt8):
        codes: Array = _stored(packing.codes)[row, column].astype(np.float64)
        return codes * _stored(packing.scale)[row] / 127
    if isinstance(packing, Scaled):
        return _scaled(packing, row, column)
    if isinstance(packing, Float8):
        return _float8(_stored(packing.codes, "U8").reshape(-1, packing.columns)[row, column], packing.codes.dtype)
    if isinstance(packing, Float4):
        return _float4(packing, row, column)
    if isinstance(packing, TurnedFloat4):
        expert, inner = np.divmod(row, packing.shape[1])
        byte = _stored(packing.codes).reshape(*packing.codes.shape[:2], -1)[expert, column, inner // 2]
        return _e2m1(np.where(inner % 2, byte >> 4, byte & 15)) * 2.0 ** (
            _stored(packing.scale, "U8")[expert, column, inner // 32].astype(np.float64) - 127
        )
    if isinstance(packing, PackedRows):
        return _packed_rows(packing, row, column)
    if isinstance(packing, PackedColumns):
        return _packed_columns(packing, row, column)
    if isinstance(packing, PackedGemv):
        group = column // (packing.columns // packing.groups)
        code = _bits(_stored(packing.codes), row, column, packing.bits, down=False)
        zero = _bits(_stored(packing.zero), row, group, packing.bits, down=False)
        return (code - zero) * _stored(packing.scale)[row, group].astype(np.float64)
    raise TypeError(type(packing).__name__)


def _stored(part: Part, dtype: str | None = None) -> Array:
    """A mapped view, so that only the pages that are indexed are read; bf16 and 8-bit floats become float64."""
    kind = dtype or part.dtype
    width = _PLAIN.get(kind, "<u2" if kind == "BF16" else "u1")
    raw: Array = np.memmap(part.file, dtype=width, mode="r", offset=part.offset, shape=part.shape or (1,))
    if kind == "BF16":
        return (np.asarray(raw).astype(np.uint32) << 16).view(np.float32)
    if kind == "F8_E8M0":
        return 2.0 ** (np.asarray(raw).astype(np.float64) - 127)
    return raw


def _codebook(packing: Codebook, element: Array) -> Array:
    codes = packing.codes  # two a byte, whatever dtype they are stored as
    byte = np.memmap(codes.file, "u1", "r", codes.offset, (codes.nbytes,))[element // 2]
    code = np.where(element % 2, byte & 15, byte >> 4)
    group = element // packing.block
    absmax = _stored(packing.absmax)[group]
    if (nested := packing.nested) is not None:
        absmax = _stored(nested.table)[absmax] * _stored(nested.absmax)[group // nested.block] + np.float32(nested.offset)
    return np.asarray(_stored(packing.table)[code] * absmax)


def _float8(codes: Array, dtype: str) -> Array:
    bits = np.asarray(codes).astype(np.int64)
    width, bias = (3, 7) if dtype == "F8_E4M3" else (2, 15)
    exponent, fraction = (bits & 127) >> width, (bits & ((1 << width) - 1)) / (1 << width)
    size = np.where(exponent == 0, fraction * 2.0 ** (1 - bias), (1 + fraction) * 2.0 ** (exponent - float(bias)))
    if dtype == "F8_E4M3":
        size = np.where((bits & 127) == 127, np.nan, size)
    else:
        size = np.where(exponent == 31, np.where(fraction == 0, np.inf, np.nan), size)
    return np.where(bits & 128, -size, size)


def _e2m1(code: Array) -> Array:
    return np.where(code & 8, -1.0, 1.0) * _E2M1[code & 7]


def codes_of(packing: Scaled, first: int, last: int, *, numbers: bool = False) -> Array:
    """The FP8 codes of rows of the last dimension, as bytes or as the numbers that they are without their scales."""
    codes = np.asarray(_stored(packing.codes, "U8").reshape(-1, packing.columns)[first:last])
    return _float8(codes, packing.codes.dtype) if numbers else codes


def scales_of(packing: Scaled, first: int, last: int) -> Array:
    """The scale of every value of these rows, float64."""
    row, column = np.meshgrid(np.arange(first, last), np.arange(packing.columns), indexing="ij")
    return _scale_at(packing, row, column)


def _scale_at(packing: Scaled, row: Array, column: Array) -> Array:
    height = packing.shape[-2]
    grid = (-1, -(-height // packing.block[0]), -(-packing.columns // packing.block[1]))
    where = (row // height, row % height // packing.block[0], column // packing.block[1])
    kind = "F8_E8M0" if packing.scale.dtype == "U8" else None
    return _stored(packing.scale, kind).reshape(grid)[where].astype(np.float64)


def _scaled(packing: Scaled, row: Array, column: Array) -> Array:
    scale = _scale_at(packing, row, column)
    dtype = packing.codes.dtype
    codes = _stored(packing.codes, "I8" if dtype == "I8" else "U8").reshape(-1, packing.columns)[row, column]
    if dtype != "I8":
        return _float8(codes, dtype) * scale
    zero: Any = 0.0
    if packing.zero is not None:
        height, (high, wide) = packing.shape[-2], packing.block
        grid = (-1, -(-height // high), -(-packing.columns // wide))
        zero = _stored(packing.zero).reshape(grid)[row // height, row % height // high, column // wide].astype(np.float64)
    return (codes.astype(np.float64) - zero) * scale


def _float4(packing: Float4, row: Array, column: Array) -> Array:
    byte = _stored(packing.codes)[row, column // 2]
    stored = _stored(packing.scale, "U8")[row, column // packing.group]
    if packing.overall is None:
        scale = 2.0 ** (stored.astype(np.float64) - 127)
    else:
        overall = float(_stored(packing.overall).reshape(-1)[0])
        scale = _float8(stored, "F8_E4M3") * (1 / overall if packing.divides else overall)
    return _e2m1(np.where(column % 2, byte >> 4, byte & 15)) * scale


def _ggml(packing: Ggml, first: int, last: int) -> Array:
    """Whole attention heads by the package gguf, their halves put back one after the other, then the rows that are asked for."""
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    vector = len(packing.shape) == 1
    per, rows = packing.head_rows, packing.shape[0] if vector else packing.rows
    begin, end = (0, rows) if vector else (first // per * per, min(rows, -(-last // per) * per))
    raw: Array = np.memmap(packing.codes.file, np.uint8, "r", packing.codes.offset, (packing.codes.nbytes,))
    raw = raw.reshape(rows, -1)[begin:end]
    plain = {"F32": "<f4", "F16": "<f2", "F64": "<f8"}.get(packing.type)
    kind = GGMLQuantizationType[packing.type]
    values = np.ascontiguousarray(raw).view(plain) if plain else dequantize(np.ascontiguousarray(raw), kind)
    values = values.astype(np.float32).reshape(end - begin, -1)
    if packing.heads:
        pairs = values.reshape(-1, per // 2, 2, values.shape[1])
        values = pairs.swapaxes(1, 2).reshape(values.shape)
    values = values - np.float32(packing.added)
    return values.reshape(1, -1) if vector else values[first - begin : last - begin]


def _bits(words: Array, line: Array, number: Array, bits: int, *, down: bool) -> Array:
    """Code `number` of a line of words: of column `line` (`down`) or of row `line`. Codes lie end to end in the words' bits."""
    word, place = np.divmod(number * bits, 32)
    following = np.minimum(word + 1, words.shape[0 if down else 1] - 1)
    low, high = ((words[w, line] if down else words[line, w]).astype(np.int64) & 0xFFFFFFFF for w in (word, following))
    return ((low >> place) | np.where(place, high << (32 - place), 0)) & ((1 << bits) - 1)


def _group(order: Part | None, column: Array, columns: int, groups: int) -> Array:
    return column // (columns // groups) if order is None else np.asarray(_stored(order)).astype(np.int64)[column]


def _packed_rows(packing: PackedRows, row: Array, column: Array) -> Array:
    middle = 1 << (packing.bits - 1)
    group = _group(packing.order, column, packing.columns, packing.scale.shape[1])
    code = _bits(_stored(packing.codes), row, column, packing.bits, down=False) - middle
    where = (np.minimum(row, packing.scale.shape[0] - 1), group)
    zero: Any = 0
    if packing.zero is not None and packing.zero.dtype == "I8":
        zero = _stored(packing.zero)[where].astype(np.int64)
    elif packing.zero is not None:
        zero = _bits(_stored(packing.zero), group, where[0], packing.bits, down=True) - middle
    return (code - zero) * _stored(packing.scale)[where].astype(np.float64)


def _packed_columns(packing: PackedColumns, row: Array, column: Array) -> Array:
    limit = (1 << packing.bits) - 1
    group = _group(packing.order, column, packing.columns, packing.scale.shape[0])
    if packing.interleaved:
        place = np.array([0, 4, 1, 5, 2, 6, 3, 7])[row % 8]
        code = _bits(_stored(packing.codes), column, row // 8 * 8 + place, 4, down=False)
        zero = _bits(_stored(packing.zero), group, row // 8 * 8 + place, 4, down=False)
    else:
        code = _bits(_stored(packing.codes), row, column, packing.bits, down=True)
        zero = (_bits(_stored(packing.zero), group, row, packing.bits, down=False) + packing.added) & limit
    return (code - zero) * _stored(packing.scale)[group, row].astype(np.float64)
