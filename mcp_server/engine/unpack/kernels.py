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
    """Rows `first` … of one turned expert: codes (in/2, out), scale (in/32, out), `out` (some of in, out)."""
    for r in range(out.shape[0]):
        i = first + r
        shift = 4 * (i & 1)
        bytes_, scales = codes[i >> 1], scale[i >> 5]
        for o in range(out.shape[1]):
            out[r, o] = table[(np.int64(bytes_[o]) >> shift) & 15] * scales[o]


@njit(nogil=True, cache=True)
def nibbles_with_zero(codes: Array, zero: Array, scale: Array, first: int, size: int, out: Array) -> None:
    """(code − zero) · scale of two codes a byte, low nibble first; scale and zero (all rows or one, groups of an even `size`)."""
    half = size // 2
    for r in range(out.shape[0]):
        row = 0 if scale.shape[0] == 1 else first + r
        for g in range(scale.shape[1]):
            s, z = scale[row, g], zero[row, g]
            for k in range(g * half, (g + 1) * half):
                byte = np.int32(codes[r, k])
                out[r, 2 * k] = np.float32((byte & np.int32(15)) - z) * s
                out[r, 2 * k + 1] = np.float32((byte >> np.int32(4)) - z) * s


@njit(nogil=True, cache=True)
def bytes_with_zero(codes: Array, zero: Array, scale: Array, first: int, size: int, out: Array) -> None:
    """(code − zero) · scale of one code a byte; scale and zero (all rows or one, groups of `size`)."""
    for r in range(out.shape[0]):
        row = 0 if scale.shape[0] == 1 else first + r
        for g in range(scale.shape[1]):
            s, z = scale[row, g], zero[row, g]
            for c in range(g * size, (g + 1) * size):
                out[r, c] = np.float32(np.int32(codes[r, c]) - z) * s


@njit(nogil=True, cache=True)
def words_with_zero(words: Array, bits: int, zero: Array, scale: Array, group: Array, first: int, out: Array) -> None:
    """(code − zero) · scale of words along the rows, whose columns may be in any order: `group` of each column.

    A code may begin in one word and end in the next.
    """
    mask = np.uint64((1 << bits) - 1)
    for r in range(out.shape[0]):
        row = 0 if scale.shape[0] == 1 else first + r
        line, scales, zeros = words[r], scale[row], zero[row]
        held, count, w = np.uint64(0), 0, 0  # what is read and not yet used, and how many bits that is
        for c in range(out.shape[1]):
            if count < bits:
                held |= np.uint64(line[w]) << np.uint64(count)
                w += 1
                count += 32
            code = np.int32(held & mask)
            held >>= np.uint64(bits)
            count -= bits
            g = group[c]
            out[r, c] = np.float32(code - zeros[g]) * scales[g]


@njit(nogil=True, cache=True)
def interleaved_with_zero(words: Array, places: Array, zero: Array, scale: Array, first: int, size: int, out: Array) -> None:
    """AWQ: words (out/8, in) as int32, the code of output o at nibble places[o % 8]; scale and zero (out, groups of `size`).

    Every step is said to be int32: the compiler would take 64 bits, and half as many values at a time.
    """
    for r in range(out.shape[0]):
        o = first + r
        row, shift = words[o >> 3], np.int32(4 * places[o & 7])
        for g in range(scale.shape[1]):
            s, z = scale[o, g], np.int32(zero[o, g])
            for c in range(g * size, (g + 1) * size):
                code = np.int32(np.int32(row[c] >> shift) & np.int32(15))
                out[r, c] = np.float32(np.int32(code - z)) * s


@njit(nogil=True, cache=True)
def turned(codes: Array) -> Array:
    """The transposed bytes or words, tile by tile, so that both sides stay in the cache, and written in order."""
    tile = 32
    out = np.empty((codes.shape[1], codes.shape[0]), codes.dtype)
    for i in range(0, codes.shape[0], tile):
        for j in range(0, codes.shape[1], tile):
            for b in range(j, min(j + tile, codes.shape[1])):
                for a in range(i, min(i + tile, codes.shape[0])):
                    out[b, a] = codes[a, b]
    return out
