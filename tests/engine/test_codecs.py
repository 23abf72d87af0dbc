"""Every bit pattern of the narrow types, and float32 values at every kind of edge."""

from __future__ import annotations

import numpy as np
import pytest

from mcp_server.engine.codecs import count_stored_nonfinite, decode, encode

HALF_PATTERNS = np.arange(1 << 16, dtype=np.uint16)


def edges() -> np.ndarray:
    """float32 patterns: random ones, and each half's and bfloat's neighbourhood."""
    random = np.random.default_rng(0).integers(0, 1 << 32, 300_000, dtype=np.uint32)
    halves = HALF_PATTERNS.view(np.float16).astype(np.float32).view(np.uint32)
    bfloats = HALF_PATTERNS.astype(np.uint32) << 16
    near = [
        base + np.uint32(step) for base in (halves, bfloats) for step in (0, 1, 0xFFF, 0x1000, 0x1001, 0x7FFF, 0x8000, 0x8001)
    ]
    return np.concatenate([random, *near])


def test_widening_is_exact() -> None:
    out = np.empty(1 << 16, np.float32)
    decode(HALF_PATTERNS.view(np.uint8), "BF16", out)
    assert (out.view(np.uint32) == HALF_PATTERNS.astype(np.uint32) << 16).all()
    decode(HALF_PATTERNS.view(np.uint8), "F16", out)
    expected = HALF_PATTERNS.view(np.float16).astype(np.float32)
    assert np.array_equal(out, expected, equal_nan=True)
    assert (np.signbit(out) == np.signbit(expected)).all()


def test_narrowing_rounds_to_nearest_even() -> None:
    bits = edges()
    values, raw = bits.view(np.float32), np.empty(bits.size, np.uint16)
    finite = ~np.isnan(values)
    with np.errstate(over="ignore"):
        expected = values[finite].astype(np.float16).view(np.uint16)
    encode(values, "F16", raw.view(np.uint8))
    assert (raw[finite] == expected).all()
    encode(values, "BF16", raw.view(np.uint8))
    wide = bits[finite].astype(np.uint64)
    assert (raw[finite] == ((wide + 0x7FFF + ((wide >> 16) & 1)) >> 16).astype(np.uint16)).all()


@pytest.mark.parametrize("dtype", ["BF16", "F16"])
def test_not_a_number_stays_one(dtype: str) -> None:
    values = np.array([np.nan, -np.nan], np.float32)
    values = np.concatenate([values, np.array([0x7F800001, 0xFFFFFFFF], np.uint32).view(np.float32)])
    raw, back = np.empty(4, np.uint16), np.empty(4, np.float32)
    encode(values, dtype, raw.view(np.uint8))
    decode(raw.view(np.uint8), dtype, back)
    assert np.isnan(back).all()


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32", "F64"])
def test_values_that_are_not_finite_are_counted_as_stored(dtype: str) -> None:
    values = np.array([0.0, -1.0, np.inf, -np.inf, np.nan, 65504.0, 1e-40] * 5, np.float32)
    raw = np.empty(values.size * {"BF16": 2, "F16": 2, "F32": 4, "F64": 8}[dtype], np.uint8)
    encode(values, dtype, raw)
    assert count_stored_nonfinite(raw, dtype) == 15
    if dtype == "F16":
        assert count_stored_nonfinite(HALF_PATTERNS.view(np.uint8), dtype) == (~np.isfinite(HALF_PATTERNS.view(np.float16))).sum()
