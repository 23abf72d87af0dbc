"""Compiled loops for the ggml types that most GGUF files are made of; the others go through the package gguf.

`blocks` are (blocks, bytes) uint8, `out` is (blocks, values) float32, `d` and `dmin` the float32 values of the blocks' half
floats. Products are taken in the order of ggml's own loops, so values are equal bit by bit.

Source: ggml-quants.c (dequantize_row_*, get_scale_min_k4, kvalues_iq4nl).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np
from numba import njit

Array = np.ndarray[Any, Any]

IQ4_VALUES: Final = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32)
"""The sixteen values of IQ4_NL and IQ4_XS, before their scales."""


@njit(nogil=True, cache=True)
def _q8_0(blocks: Array, d: Array, out: Array) -> None:
    for b in range(len(blocks)):
        for i in range(32):
            out[b, i] = d[b] * np.float32(np.int8(blocks[b, 2 + i]))


@njit(nogil=True, cache=True)
def _q4_0(blocks: Array, d: Array, out: Array) -> None:
    for b in range(len(blocks)):
        for i in range(16):
            byte = np.int32(blocks[b, 2 + i])
            out[b, i] = d[b] * np.float32(np.int32(byte & np.int32(15)) - np.int32(8))
            out[b, 16 + i] = d[b] * np.float32(np.int32(byte >> np.int32(4)) - np.int32(8))


@njit(nogil=True, cache=True)
def _q4_1(blocks: Array, d: Array, m: Array, out: Array) -> None:
    for b in range(len(blocks)):
        for i in range(16):
            byte = np.int32(blocks[b, 4 + i])
            out[b, i] = d[b] * np.float32(np.int32(byte & np.int32(15))) + m[b]
            out[b, 16 + i] = d[b] * np.float32(np.int32(byte >> np.int32(4))) + m[b]


@njit(nogil=True, cache=True, inline="always")
def _fifths(blocks: Array, b: int, at: int) -> Any:
    """32 bits, the fifth of each value's five."""
    low = np.uint32(blocks[b, at]) | np.uint32(blocks[b, at + 1]) << np.uint32(8)
    return np.uint32(low | np.uint32(blocks[b, at + 2]) << np.uint32(16) | np.uint32(blocks[b, at + 3]) << np.uint32(24))


@njit(nogil=True, cache=True)
def _q5_0(blocks: Array, d: Array, out: Array) -> None:
    for b in range(len(blocks)):
        fifths = _fifths(blocks, b, 2)
        for i in range(16):
            byte = np.int32(blocks[b, 6 + i])
            first = np.int32(np.uint32(fifths >> np.uint32(i)) & np.uint32(1))
            second = np.int32(np.uint32(fifths >> np.uint32(i + 16)) & np.uint32(1))
            low = np.int32(byte & np.int32(15)) | np.int32(first << np.int32(4))
            high = np.int32(byte >> np.int32(4)) | np.int32(second << np.int32(4))
            out[b, i] = d[b] * np.float32(np.int32(low - np.int32(16)))
            out[b, 16 + i] = d[b] * np.float32(np.int32(high - np.int32(16)))


@njit(nogil=True, cache=True)
def _q5_1(blocks: Array, d: Array, m: Array, out: Array) -> None:
    for b in range(len(blocks)):
        fifths = _fifths(blocks, b, 4)
        for i in range(16):
            byte = np.int32(blocks[b, 8 + i])
            first = np.int32(np.uint32(fifths >> np.uint32(i)) & np.uint32(1))
            second = np.int32(np.uint32(fifths >> np.uint32(i + 16)) & np.uint32(1))
            low = np.int32(byte & np.int32(15)) | np.int32(first << np.int32(4))
            high = np.int32(byte >> np.int32(4)) | np.int32(second << np.int32(4))
            out[b, i] = d[b] * np.float32(np.int32(low)) + m[b]
            out[b, 16 + i] = d[b] * np.float32(np.int32(high)) + m[b]


@njit(nogil=True, cache=True)
def _q2_k(blocks: Array, d: Array, dmin: Array, out: Array) -> None:
    for b in range(len(blocks)):
        for part in range(16):
            scale = np.int32(blocks[b, part])
            by, less = d[b] * np.float32(np.int32(scale & np.int32(15))), dmin[b] * np.float32(np.int32(scale >> np.int32(4)))
            first = 16 + 32 * (part >> 3) + 16 * (part & 1)
            shift, at = np.int32(part & 6), 16 * part
            for i in range(16):
                code = np.int32(np.int32(blocks[b, first + i]) >> shift) & np.int32(3)
                out[b, at + i] = by * np.float32(code) - less


@njit(nogil=True, cache=True)
def _q3_k(blocks: Array, d: Array, out: Array) -> None:
    """A set bit of the mask takes nothing away, a clear one four."""
    for b in range(len(blocks)):
        for part in range(16):
            low = np.int32(np.int32(blocks[b, 96 + (part & 7)]) >> np.int32(part >> 3 << 2)) & np.int32(15)
            high = np.int32(np.int32(blocks[b, 104 + (part & 3)]) >> np.int32(part >> 2 << 1)) & np.int32(3)
            by = d[b] * np.float32(np.int32(low | high << np.int32(4)) - np.int32(32))
            column = 16 * (part & 1)
            first, shift, bit, at = 32 + 32 * (part >> 3) + column, np.int32(part & 6), np.int32(part >> 1), 16 * part
            for i in range(16):
                code = np.int32(np.int32(blocks[b, first + i]) >> shift) & np.int32(3)
                mask = np.int32(np.int32(blocks[b, column + i]) >> bit) & np.int32(1)
                out[b, at + i] = by * np.float32(np.int32(code + np.int32(mask << np.int32(2))) - np.int32(4))


@njit(nogil=True, cache=True)
def _iq4_nl(blocks: Array, d: Array, out: Array) -> None:
    for b in range(len(blocks)):
        for i in range(16):
            byte = blocks[b, 2 + i]
            out[b, i] = d[b] * IQ4_VALUES[byte & 15]
            out[b, 16 + i] = d[b] * IQ4_VALUES[byte >> 4]


@njit(nogil=True, cache=True)
def _iq4_xs(blocks: Array, d: Array, out: Array) -> None:
    for b in range(len(blocks)):
        upper = np.int32(blocks[b, 2]) | np.int32(blocks[b, 3]) << np.int32(8)
        for part in range(8):
            low = np.int32(np.int32(blocks[b, 4 + (part >> 1)]) >> np.int32(4 * (part & 1))) & np.int32(15)
            high = np.int32(upper >> np.int32(2 * part)) & np.int32(3)
            by = d[b] * np.float32(np.int32(low | high << np.int32(4)) - np.int32(32))
            first, at = 8 + 16 * part, 32 * part
            for i in range(16):
                byte = blocks[b, first + i]
                out[b, at + i] = by * IQ4_VALUES[byte & 15]
                out[b, at + 16 + i] = by * IQ4_VALUES[byte >> 4]


@njit(nogil=True, cache=True, inline="always")
def _scale_and_min(scales: Array, j: int) -> tuple[int, int]:
    """Of sub-block `j`: six bits each, the upper two of the last four lying over the first eight bytes."""
    if j < 4:
        return scales[j] & 63, scales[j + 4] & 63
    return (scales[j + 4] & 15) | (scales[j - 4] >> 6 << 4), (scales[j + 4] >> 4) | (scales[j] >> 6 << 4)


@njit(nogil=True, cache=True)
def _q4_k(blocks: Array, d: Array, dmin: Array, out: Array) -> None:
    for b in range(len(blocks)):
        for pair in range(4):
            low, low_min = _scale_and_min(blocks[b, 4:16], 2 * pair)
            high, high_min = _scale_and_min(blocks[b, 4:16], 2 * pair + 1)
            d1, m1 = d[b] * np.float32(low), dmin[b] * np.float32(low_min)
            d2, m2 = d[b] * np.float32(high), dmin[b] * np.float32(high_min)
            codes = blocks[b, 16 + 32 * pair : 48 + 32 * pair]
            at = 64 * pair
            for i in range(32):
                byte = np.int32(codes[i])
                out[b, at + i] = d1 * np.float32(np.int32(byte & np.int32(15))) - m1
                out[b, at + 32 + i] = d2 * np.float32(np.int32(byte >> np.int32(4))) - m2


@njit(nogil=True, cache=True)
def _q5_k(blocks: Array, d: Array, dmin: Array, out: Array) -> None:
    for b in range(len(blocks)):
        fifth = blocks[b, 16:48]
        for pair in range(4):
            low, low_min = _scale_and_min(blocks[b, 4:16], 2 * pair)
            high, high_min = _scale_and_min(blocks[b, 4:16], 2 * pair + 1)
            d1, m1 = d[b] * np.float32(low), dmin[b] * np.float32(low_min)
            d2, m2 = d[b] * np.float32(high), dmin[b] * np.float32(high_min)
            codes = blocks[b, 48 + 32 * pair : 80 + 32 * pair]
            at, shift = 64 * pair, np.int32(2 * pair)
            for i in range(32):
                byte, bits = np.int32(codes[i]), np.int32(np.int32(fifth[i]) >> shift)
                first = np.int32((byte & np.int32(15)) | (bits & np.int32(1)) << np.int32(4))
                second = np.int32((byte >> np.int32(4)) | (bits & np.int32(2)) << np.int32(3))
                out[b, at + i] = d1 * np.float32(first) - m1
                out[b, at + 32 + i] = d2 * np.float32(second) - m2


@njit(nogil=True, cache=True)
def _q6_k(blocks: Array, d: Array, out: Array) -> None:
    for b in range(len(blocks)):
        for half in range(2):
            low, high = blocks[b, 64 * half : 64 * half + 64], blocks[b, 128 + 32 * half : 160 + 32 * half]
            at = 128 * half
            for quarter in range(4):
                shift, place = np.int32(4 * (quarter >> 1)), 32 * (quarter & 1)
                for side in range(2):
                    scale = d[b] * np.float32(np.int8(blocks[b, 192 + 8 * half + 2 * quarter + side]))
                    for i in range(16 * side, 16 * side + 16):
                        four = np.int32(np.int32(low[place + i]) >> shift) & np.int32(15)
                        two = np.int32(np.int32(high[i]) >> np.int32(2 * quarter)) & np.int32(3)
                        code = np.int32(np.int32(four | two << np.int32(4)) - np.int32(32))
                        out[b, at + 32 * quarter + i] = scale * np.float32(code)


_ONE_SCALE: Final[dict[str, tuple[Callable[..., None], int]]] = {
    "Q8_0": (_q8_0, 0), "Q4_0": (_q4_0, 0), "Q5_0": (_q5_0, 0), "Q3_K": (_q3_k, 108), "Q6_K": (_q6_k, 208),
    "IQ4_NL": (_iq4_nl, 0), "IQ4_XS": (_iq4_xs, 0),
}  # fmt: skip
"""Kernel, and the byte of each block at which its half float lies."""
_SCALE_AND_MIN: Final[dict[str, tuple[Callable[..., None], int]]] = {
    "Q4_1": (_q4_1, 0), "Q5_1": (_q5_1, 0), "Q2_K": (_q2_k, 80), "Q4_K": (_q4_k, 0), "Q5_K": (_q5_k, 0),
}  # fmt: skip
"""The same, a second half float following the first."""


def unpack(blocks: Array, kind: str, out: Array) -> bool:
    """Blocks (blocks, bytes) of type `kind` into `out` (blocks, values), if the type has a loop here."""
    if kind in _ONE_SCALE:
        kernel, at = _ONE_SCALE[kind]
        kernel(blocks, _half(blocks, at), out)
    elif kind in _SCALE_AND_MIN:
        kernel, at = _SCALE_AND_MIN[kind]
        kernel(blocks, _half(blocks, at), _half(blocks, at + 2), out)
    return kind in _ONE_SCALE or kind in _SCALE_AND_MIN


def _half(blocks: Array, at: int) -> Array:
    """The half floats at byte `at` of each block, as float32."""
    return np.ascontiguousarray(blocks[:, at : at + 2]).view("<f2").reshape(-1).astype(np.float32)
