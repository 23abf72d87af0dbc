"""Compiled loops from codes to float32. Each value is one product of float32s (or a difference and a product), never re-rounded.

Shapes: `out` is (rows, columns) of one block, but for `codebook`, which is flat. Scales are float32.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

Array = np.ndarray[Any, Any]


@njit(nogil=True, cache=True)
def codebook(codes: Array, high: Array, low: Array, absmax: Array, block: int, start: int, out: Array) -> None:
    """Elements `start` … of 4-bit codes, high nibble first; `codes` begins at the byte of element `start`.

    `high` and `low` hold the value of a byte's two codes, for each of the 256 bytes.
    """
    i, skip = 0, start >> 1
    while i < out.size:
        element = start + i
        group = element // block
        stop = min(out.size, (group + 1) * block - start)
        scale = absmax[group]
        if element & 1:
            out[i] = low[codes[(element >> 1) - skip]] * scale
            i += 1
        first = ((start + i) >> 1) - skip
        pairs = (stop - i) >> 1
        for k in range(pairs):
            byte = codes[first + k]
            out[i + 2 * k] = high[byte] * scale
            out[i + 2 * k + 1] = low[byte] * scale
        i += 2 * pairs
        if i < stop:
            out[i] = high[codes[first + pairs]] * scale
            i += 1


@njit(nogil=True, cache=True)
def by_byte(codes: Array, table: Array, scale: Array, per_matrix: int, first: int, high: int, wide: int, out: Array) -> None:
    """One code a byte: table[code] · scale of its block. `per_matrix` rows a matrix; scale (matrices, row and column blocks)."""
    columns = out.shape[1]
    for r in range(out.shape[0]):
        row = first + r
        scales = scale[row // per_matrix, (row % per_matrix) // high]
        for b in range(scales.size):
            s = scales[b]
            for c in range(b * wide, min((b + 1) * wide, columns)):
                out[r, c] = table[codes[r, c]] * s


@njit(nogil=True, cache=True)
def by_byte_with_zero(
    codes: Array, zero: Array, scale: Array, per_matrix: int, first: int, high: int, wide: int, out: Array
) -> None:
    """(int8 code − zero point of its block) · scale of its block."""
    columns = out.shape[1]
    for r in range(out.shape[0]):
        row = first + r
        m, h = row // per_matrix, (row % per_matrix) // high
        for c in range(columns):
            b = c // wide
            out[r, c] = np.float32(np.int32(codes[r, c]) - np.int32(zero[m, h, b])) * scale[m, h, b]


@njit(nogil=True, cache=True)
def row_scaled(codes: Array, scale: Array, first: int, out: Array) -> None:
    """(int8 code · scale of its row) · (1/127), in bitsandbytes' order of rounding."""
    for r in range(out.shape[0]):
        s = scale[first + r]
        for c in range(out.shape[1]):
            out[r, c] = (np.float32(codes[r, c]) * s) * np.float32(7.874015718698502e-3)


@njit(nogil=True, cache=True)
def nibbles(codes: Array, low: Array, high: Array, scale: Array, first: int, group: int, out: Array) -> None:
    """Two codes a byte, low nibble first, with a scale for each `group` of a row; group is even."""
    half = group // 2
    for r in range(out.shape[0]):
        for g in range(scale.shape[1]):
            s = scale[first + r, g]
            for k in range(g * half, (g + 1) * half):
                byte = codes[r, k]
                out[r, 2 * k] = low[byte] * s
                out[r, 2 * k + 1] = high[byte] * s


@njit(nogil=True, cache=True)
def nibbles_turned(codes: Array, table: Array, scale: Array, first: int, out: Array) -> None:
    """Rows `first` … of the transpose of one expert: codes (out, in/2), scale (out, in/32), `out` (some of in, out)."""
    for o in range(out.shape[1]):
        for r in range(out.shape[0]):
            i = first + r
            code = (np.int64(codes[o, i >> 1]) >> (4 * (i & 1))) & 15
            out[r, o] = table[code] * scale[o, i >> 5]


@njit(nogil=True, cache=True)
def words_along_rows(words: Array, bits: int, zero: Array, scale: Array, group: Array, first: int, out: Array) -> None:
    """Codes packed along the rows: words (rows, ·) uint32; scale and zero (all rows or one, groups); `group` of each column."""
    per_word, mask = 32 // bits, np.uint32((1 << bits) - 1)
    one = scale.shape[0] == 1
    for r in range(out.shape[0]):
        scales = scale[0 if one else first + r]
        zeros = zero[0 if one else first + r]
        for c in range(out.shape[1]):
            word = words[r, c // per_word]
            code = np.int32((word >> np.uint32((c % per_word) * bits)) & mask)
            g = group[c]
            out[r, c] = np.float32(code - zeros[g]) * scales[g]


@njit(nogil=True, cache=True)
def words_down_columns(words: Array, bits: int, zero: Array, scale: Array, group: Array, first: int, out: Array) -> None:
    """GPTQ: words (in/per_word, out); scale and zero (groups, out). `out` holds rows `first` … of the (out, in) weight."""
    per_word, mask = 32 // bits, np.uint32((1 << bits) - 1)
    for k in range(words.shape[0]):
        for r in range(out.shape[0]):
            word = words[k, first + r]
            for j in range(per_word):
                c = k * per_word + j
                g = group[c]
                code = np.int32((word >> np.uint32(j * bits)) & mask)
                out[r, c] = np.float32(code - zero[g, first + r]) * scale[g, first + r]


@njit(nogil=True, cache=True)
def words_interleaved(words: Array, places: Array, zero: Array, scale: Array, group: Array, first: int, out: Array) -> None:
    """AWQ: words (in, out/8), the code of output o at nibble places[o % 8]; scale and zero (groups, out)."""
    for c in range(words.shape[0]):
        g = group[c]
        for r in range(out.shape[0]):
            o = first + r
            code = np.int32((words[c, o >> 3] >> np.uint32(4 * places[o & 7])) & np.uint32(15))
            out[r, c] = np.float32(code - zero[g, o]) * scale[g, o]
