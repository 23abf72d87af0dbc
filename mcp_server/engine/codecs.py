"""bf16 and fp16 to float32 and back, on raw bits: exact on the way in, one rounding (to nearest, ties to even) on the way out.

numpy has no bf16 and converts fp16 one element at a time; these loops of integer arithmetic are what a compiler turns into SIMD.
On the way, differences from a reference are formed and values that are not finite are counted. (numba's cache watches one file
per function, so a compiled function calls only functions of its own file.)
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from mcp_server.engine.blocks import CHUNK

Array = np.ndarray[Any, Any]

_INF = np.uint32(0x7F800000)
_EXPONENT = {"BF16": 0x7F80, "F16": 0x7C00}  # all of these bits set: infinite or not a number


@njit(nogil=True, cache=True)
def _widen_bf16(raw: Array, bits: Array) -> None:
    for i in range(raw.size):
        bits[i] = np.uint32(raw[i]) << np.uint32(16)


@njit(nogil=True, cache=True)
def _narrow_bf16(bits: Array, raw: Array) -> None:
    for i in range(bits.size):
        u = bits[i]
        rounded = (u + np.uint32(0x7FFF) + ((u >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
        quiet_nan = (u >> np.uint32(16)) | np.uint32(0x40)
        is_nan = (u & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
        raw[i] = np.uint16(quiet_nan if is_nan else rounded)


@njit(nogil=True, cache=True)
def _widen_f16(raw: Array, bits: Array, values: Array) -> None:
    scale = np.float32(2.0**112)  # moves a half's exponent bias (15) to a float's (127); exact, for subnormals too
    for i in range(raw.size):
        bits[i] = (np.uint32(raw[i]) & np.uint32(0x7FFF)) << np.uint32(13)
    for i in range(raw.size):
        values[i] = values[i] * scale
    for i in range(raw.size):
        h = np.uint32(raw[i])
        special = np.uint32(0x7F800000) if (h & np.uint32(0x7C00)) == np.uint32(0x7C00) else np.uint32(0)
        bits[i] = bits[i] | special | ((h & np.uint32(0x8000)) << np.uint32(16))


@njit(nogil=True, cache=True)
def _narrow_f16(values: Array, bits: Array, raw: Array) -> None:
    for i in range(bits.size):
        u = bits[i]
        sign = (u >> np.uint32(16)) & np.uint32(0x8000)
        a = u & np.uint32(0x7FFFFFFF)
        if a >= np.uint32(0x47800000):  # at or above 2**16, infinite, or not a number
            out = np.uint32(0x7E00) if a > np.uint32(0x7F800000) else np.uint32(0x7C00)
        elif a < np.uint32(0x38800000):  # below the smallest normal half: count in units of 2**-24
            out = np.uint32(np.rint(np.float64(abs(values[i])) * 16777216.0))
        else:
            out = (a - np.uint32(0x38000000) + np.uint32(0xFFF) + ((a >> np.uint32(13)) & np.uint32(1))) >> np.uint32(13)
        raw[i] = np.uint16(out | sign)


@njit(nogil=True, cache=True, fastmath={"reassoc"})
def count_nonfinite(bits: Array) -> int:
    """How many of the float32 patterns are infinite or not a number."""
    found = 0
    for i in range(bits.size):
        found += (bits[i] & _INF) == _INF
    return found


@njit(nogil=True, cache=True, fastmath={"reassoc"})
def _count_nonfinite16(bits: Array, exponent: int) -> int:
    found, mask = 0, np.uint16(exponent)
    for i in range(bits.size):
        found += (bits[i] & mask) == mask
    return found


def count_stored_nonfinite(raw: Array, dtype: str) -> int:
    """How many elements of `raw`, held in `dtype` (safetensors name), are infinite or not a number."""
    if dtype in _EXPONENT:
        return int(_count_nonfinite16(raw.view(np.uint16), _EXPONENT[dtype]))
    if dtype == "F64":
        return int(raw.size // 8 - np.isfinite(raw.view(np.float64)).sum())
    return int(count_nonfinite(raw.view(np.uint32)))


@njit(nogil=True, cache=True)
def _subtract(values: Array, reference: Array) -> None:
    for i in range(values.size):
        values[i] -= reference[i]


@njit(nogil=True, cache=True)
def subtract(values: Array, reference: Array) -> int:
    """values −= reference; returns how many of the differences are not finite."""
    found = 0
    for begin in range(0, values.size, CHUNK):
        part = values[begin : min(begin + CHUNK, values.size)]
        _subtract(part, reference[begin : begin + part.size])
        found += count_nonfinite(part.view(np.uint32))
    return found


@njit(nogil=True, cache=True)
def _widen_difference_bf16(raw: Array, reference: Array, out: Array) -> int:
    bits, found = out.view(np.uint32), 0
    for begin in range(0, raw.size, CHUNK):
        end = min(begin + CHUNK, raw.size)
        _widen_bf16(raw[begin:end], bits[begin:end])
        found += subtract(out[begin:end], reference[begin:end])
    return found


def decode(raw: Array, dtype: str, out: Array) -> None:
    """Bytes of `dtype` (safetensors name) to float32 in `out`; both hold out.size elements. Only float64 is rounded."""
    if dtype == "BF16":
        _widen_bf16(raw.view(np.uint16), out.view(np.uint32))
    elif dtype == "F16":
        _widen_f16(raw.view(np.uint16), out.view(np.uint32), out)
    elif dtype == "F64":
        np.copyto(out, raw.view(np.float64), casting="same_kind")
    else:
        np.copyto(out, raw.view(np.float32))


def decode_difference(raw: Array, dtype: str, reference: Array, out: Array) -> int:
    """decode, minus `reference`, while the values are in the cache; returns how many of the differences are not finite."""
    if dtype == "BF16":
        return int(_widen_difference_bf16(raw.view(np.uint16), reference, out))
    decode(raw, dtype, out)
    return int(subtract(out, reference))


def encode(values: Array, dtype: str, raw: Array) -> None:
    """float32 `values` to bytes of `dtype` in `raw`, rounded once."""
    if dtype == "BF16":
        _narrow_bf16(values.view(np.uint32), raw.view(np.uint16))
    elif dtype == "F16":
        _narrow_f16(values, values.view(np.uint32), raw.view(np.uint16))
    elif dtype == "F64":
        np.copyto(raw.view(np.float64), values)
    else:
        np.copyto(raw.view(np.float32), values)
