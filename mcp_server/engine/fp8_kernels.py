"""Compiled loops that turn float32 into FP8 (E4M3) codes with a scale for each block of a matrix."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

Array = np.ndarray[Any, Any]


@njit(nogil=True, cache=True)
def measure(
    values: Array,
    codes: Array,
    table: Array,
    scale: Array,
    per_matrix: int,
    first: int,
    high: int,
    wide: int,
    most: Array,
    changed: Array,
) -> None:
    """For each block of scales that rows `first` … touch: the largest finite magnitude, and whether a value is another.

    `scale` (bands, blocks of a row) holds what is stored; row 0 of `most` and `changed` is the band of the first row.
    """
    columns, bands = values.shape[1], -(-per_matrix // high)
    begin = first // per_matrix * bands + first % per_matrix // high
    for r in range(values.shape[0]):
        row = first + r
        band = row // per_matrix * bands + row % per_matrix // high
        for b in range(scale.shape[1]):
            s, top, moved = scale[band, b], most[band - begin, b], changed[band - begin, b]
            for c in range(b * wide, min((b + 1) * wide, columns)):
                value = values[r, c]
                size = abs(value)
                top = size if top < size < np.inf else top
                moved |= value != table[codes[r, c]] * s
            most[band - begin, b], changed[band - begin, b] = top, moved


@njit(nogil=True, cache=True, error_model="numpy")
def divide(values: Array, scale: Array, per_matrix: int, first: int, high: int, wide: int, out: Array) -> None:
    """value ÷ scale of its block, kept within ±448; what is not finite becomes no number."""
    columns, bands = values.shape[1], -(-per_matrix // high)
    for r in range(values.shape[0]):
        row = first + r
        band = row // per_matrix * bands + row % per_matrix // high
        for b in range(scale.shape[1]):
            s = scale[band, b]
            for c in range(b * wide, min((b + 1) * wide, columns)):
                value = values[r, c]
                part = min(max(value / s, np.float32(-448)), np.float32(448))
                out[r, c] = part if abs(value) < np.inf else np.float32(np.nan)


@njit(nogil=True, cache=True)
def encode(values: Array, bits: Array, codes: Array) -> None:
    """float32 `values` within ±448, and their patterns, to the nearest codes, ties to even; what is no number becomes 127."""
    for i in range(bits.size):
        u = bits[i]
        size = u & np.uint32(0x7FFFFFFF)
        if size > np.uint32(0x7F800000):
            code = np.uint32(0x7F)
        elif size < np.uint32(0x3C800000):  # below 2**-6, the smallest normal number: count in units of 2**-9
            code = np.uint32(np.rint(abs(values[i]) * np.float32(512)))
        else:
            code = ((size + np.uint32(0x7FFFF) + ((size >> np.uint32(20)) & np.uint32(1))) >> np.uint32(20)) - np.uint32(960)
        codes[i] = np.uint8(code | ((u >> np.uint32(24)) & np.uint32(0x80)))


@njit(nogil=True, cache=True)
def keep(codes: Array, stored: Array, changed: Array, per_matrix: int, first: int, high: int, wide: int) -> None:
    """The stored codes, in blocks in which nothing changed."""
    columns, bands = codes.shape[1], -(-per_matrix // high)
    for r in range(codes.shape[0]):
        row = first + r
        band = row // per_matrix * bands + row % per_matrix // high
        for b in range(changed.shape[1]):
            if not changed[band, b]:
                for c in range(b * wide, min((b + 1) * wide, columns)):
                    codes[r, c] = stored[r, c]
