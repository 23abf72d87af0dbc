"""The loops that numpy cannot fuse: cutting by magnitude, electing signs, weighted sums, and the evidence.

Everything is float32 in and out with float64 sums. Arrays are contiguous; stacks are (sources, elements). Inner loops run over
`CHUNK` elements so that what they reuse stays in the first-level cache and the compiler can use SIMD for any number of sources.
Only pure sums may be reassociated; nothing else is compiled with relaxed arithmetic.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numba import njit

from mcp_server.engine.blocks import CHUNK

Array = np.ndarray[Any, Any]

_SUM = {"reassoc"}
_ABS = np.uint32(0x7FFFFFFF)


def are_compiled() -> bool:
    """Whether a run before this one left compiled kernels in the cache (beside this file, else in the user's cache folder)."""
    return any(Path(dot.stats.cache_path).glob("kernels.*.nbi"))


# ── sums ──────────────────────────────────────────────────────────────────────────────────────────────────────────────────


@njit(nogil=True, cache=True, fastmath=_SUM)
def dot(a: Array, b: Array) -> float:
    total = 0.0
    for i in range(a.size):
        total += np.float64(a[i]) * np.float64(b[i])
    return total


@njit(nogil=True, cache=True, fastmath=_SUM)
def absolute_sum(a: Array) -> float:
    total = 0.0
    for i in range(a.size):
        total += np.float64(abs(a[i]))
    return total


# ── comparison ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@njit(nogil=True, cache=True, fastmath=_SUM)
def measure(a: Array, threshold: float) -> tuple[float, int, int]:
    """(Σa², how many are not zero, how many are at least `threshold` in magnitude)."""
    square, changed, top = 0.0, 0, 0
    for i in range(a.size):
        square += np.float64(a[i]) * np.float64(a[i])
        changed += a[i] != 0
        top += abs(a[i]) >= threshold
    return square, changed, top


@njit(nogil=True, cache=True, fastmath=_SUM)
def relate(a: Array, b: Array, threshold_a: float, threshold_b: float) -> tuple[float, int, int, int]:
    """(Σab, how many both change, how many of these in opposite directions, how many are at least the thresholds in both)."""
    product, both, opposite, top = 0.0, 0, 0, 0
    for i in range(a.size):
        x, y = a[i], b[i]
        product += np.float64(x) * np.float64(y)
        both += (x != 0) & (y != 0)
        opposite += ((x > 0) & (y < 0)) | ((x < 0) & (y > 0))
        top += (abs(x) >= threshold_a) & (abs(y) >= threshold_b)
    return product, both, opposite, top


# ── masks: what a sparsifier keeps of a delta ─────────────────────────────────────────────────────────────────────────────


@njit(nogil=True, cache=True)
def _keep_from(bits: Array, pattern: int, kept: Array) -> None:
    lowest = np.uint32(pattern)
    for i in range(bits.size):
        kept[i] = bits[i] if np.uint32(bits[i] & _ABS) >= lowest else np.uint32(0)


@njit(nogil=True, cache=True)
def keep_largest(bits: Array, threshold: int, ties: int, kept: Array) -> None:
    """Keep |values| above the threshold pattern, and those equal to it among the first `ties` elements; all as patterns."""
    first = min(max(ties, 0), bits.size)
    _keep_from(bits[:first], threshold, kept[:first])
    _keep_from(bits[first:], threshold + 1, kept[first:])


@njit(nogil=True, cache=True)
def _drop_from(bits: Array, pattern: int, kept: Array) -> None:
    lowest = np.uint32(pattern)
    for i in range(bits.size):
        kept[i] = kept[i] if np.uint32(bits[i] & _ABS) < lowest else np.uint32(0)


@njit(nogil=True, cache=True)
def drop_largest(bits: Array, threshold: int, ties: int, kept: Array) -> None:
    """The opposite: zero in `kept` what `keep_largest` would keep."""
    first = min(max(ties, 0), bits.size)
    _drop_from(bits[:first], threshold, kept[:first])
    _drop_from(bits[first:], threshold + 1, kept[first:])


# ── merging ───────────────────────────────────────────────────────────────────────────────────────────────────────────────


@njit(nogil=True, cache=True)
def _add_scaled(total: Array, factor: float, part: Array) -> None:
    for j in range(part.size):
        total[j] += factor * np.float64(part[j])


@njit(nogil=True, cache=True)
def _scale(part: Array, factor: float, scaled: Array, total: Array) -> None:
    for j in range(part.size):
        value = factor * np.float64(part[j])
        scaled[j] = value
        total[j] += value


@njit(nogil=True, cache=True)
def _take_signs(total: Array) -> None:
    """+1 or −1; a sum that is no number has no sign, and nothing agrees with it."""
    for j in range(total.size):
        total[j] = 1.0 if total[j] >= 0.0 else (-1.0 if total[j] < 0.0 else 0.0)


@njit(nogil=True, cache=True)
def _add_agreeing(scaled: Array, sign: Array, weight: float, mixed: Array, divisor: Array) -> None:
    for j in range(scaled.size):
        along = scaled[j] * sign[j]
        mixed[j] += along if along > 0.0 else 0.0
        divisor[j] += weight if along > 0.0 else 0.0


@njit(nogil=True, cache=True)
def _divide(mixed: Array, divisor: Array) -> None:
    for j in range(mixed.size):
        by = divisor[j]
        mixed[j] = mixed[j] / (by if by != 0.0 else 1.0)


@njit(nogil=True, cache=True)
def _finish(reference: Array, lambda_: float, sign: Array, mixed: Array, out: Array) -> None:
    for j in range(out.size):
        out[j] = np.float32(np.float64(reference[j]) + lambda_ * (sign[j] * mixed[j]))


@njit(nogil=True, cache=True)
def _round(total: Array, out: Array) -> None:
    for j in range(out.size):
        out[j] = np.float32(total[j])


@njit(nogil=True, cache=True)
def weighted_sum(reference: Array, scale: float, parts: Array, factors: Array, out: Array) -> None:
    """out = scale·reference + Σ factors[k]·parts[k]. An empty reference counts as zero."""
    buffer = np.empty(CHUNK, np.float64)
    for begin in range(0, out.size, CHUNK):
        end = min(begin + CHUNK, out.size)
        total = buffer[: end - begin]
        total[:] = 0.0
        if reference.size:
            _add_scaled(total, scale, reference[begin:end])
        for k in range(parts.shape[0]):
            _add_scaled(total, factors[k], parts[k, begin:end])
        _round(total, out[begin:end])


@njit(nogil=True, cache=True)
def elect(
    reference: Array,
    parts: Array,
    thresholds: Array,
    ties: Array,
    factors: Array,
    weights: Array,
    normalize: bool,
    lambda_: float,
    out: Array,
) -> None:
    """Sign election: out = reference + lambda_ · Σ agreeing factors·kept, divided by their weights if `normalize`.

    Of part k, `keep_largest` with thresholds[k] and ties[k] takes part; a threshold of zero takes all of it. The sign of an
    element is that of the weighted sum, positive when it is zero; a part agrees when its own sign is the same, so a zero never
    does. A divisor of zero counts as one.
    """
    sources = parts.shape[0]
    buffers = np.empty((3 + sources, CHUNK), np.float64)
    kept = np.empty(CHUNK, np.float32)
    for begin in range(0, out.size, CHUNK):
        end = min(begin + CHUNK, out.size)
        size = end - begin
        total, mixed, divisor = buffers[0, :size], buffers[1, :size], buffers[2, :size]
        total[:] = 0.0
        mixed[:] = 0.0
        divisor[:] = 0.0
        for k in range(sources):
            keep_largest(parts[k, begin:end].view(np.uint32), thresholds[k], ties[k] - begin, kept[:size].view(np.uint32))
            _scale(kept[:size], factors[k], buffers[3 + k, :size], total)
        _take_signs(total)
        for k in range(sources):
            _add_agreeing(buffers[3 + k, :size], total, weights[k], mixed, divisor)
        if normalize:
            _divide(mixed, divisor)
        _finish(reference[begin:end], lambda_, total, mixed, out[begin:end])


# ── evidence ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


@njit(nogil=True, cache=True, fastmath=_SUM)
def _landing(reference: Array, grid: Array, exact: Array, rounded: Array, delta: Array) -> tuple[float, float, float, float]:
    along = energy = moved = undone = 0.0
    for i in range(delta.size):
        d = np.float64(delta[i])
        square = d * d
        along += (np.float64(rounded[i]) - np.float64(reference[i])) * d
        energy += square
        moves = exact[i] != reference[i]
        moved += square if moves else 0.0
        undone += square if moves and rounded[i] == grid[i] else 0.0
    return along, energy, moved, undone


@njit(nogil=True, cache=True)
def landing(reference: Array, grid: Array, exact: Array, rounded: Array, deltas: Array, sums: Array) -> None:
    """Add to sums[k] over a block: (landed·delta, delta², delta² where the merge moves, delta² where rounding undid the move).

    landed = rounded − reference. `grid` is the reference in the output's precision: a move is undone when the rounded result
    is the same number as that.
    """
    for begin in range(0, exact.size, CHUNK):
        end = min(begin + CHUNK, exact.size)
        for k in range(deltas.shape[0]):
            along, energy, moved, undone = _landing(
                reference[begin:end], grid[begin:end], exact[begin:end], rounded[begin:end], deltas[k, begin:end]
            )
            sums[k, 0] += along
            sums[k, 1] += energy
            sums[k, 2] += moved
            sums[k, 3] += undone
