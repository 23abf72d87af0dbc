"""The loops that numpy cannot fuse: counting bit patterns, masking, electing signs, weighted sums, and the evidence.

Everything is float32 in and out with float64 sums. Arrays are contiguous; stacks are (sources, elements). Inner loops run over
`CHUNK` elements so that what they reuse stays in the first-level cache and the compiler can use SIMD for any number of sources.
Only pure sums may be reassociated; nothing else is compiled with relaxed arithmetic.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numba import njit

from mcp_server.engine.random_numbers import number_at

Array = np.ndarray[Any, Any]

CHUNK = 1024
_SUM = {"reassoc"}
_ABS = np.uint32(0x7FFFFFFF)
_INF = np.uint32(0x7F800000)


def are_compiled() -> bool:
    """Whether a run before this one left compiled kernels in the cache (beside this file, else in the user's cache folder)."""
    return any(Path(dot.stats.cache_path).glob("kernels.*.nbi"))


# ── counting ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


@njit(nogil=True, cache=True)
def count_high(bits: Array, counts: Array) -> None:
    """Add to counts[32768] the upper 16 bits of every |value|'s pattern: a histogram in order of magnitude."""
    for i in range(bits.size):
        counts[(bits[i] & _ABS) >> np.uint32(16)] += 1


@njit(nogil=True, cache=True)
def count_low(bits: Array, high: int, counts: Array) -> None:
    """Add to counts[65536] the lower 16 bits of the |values| whose upper half is `high`."""
    wanted = np.uint32(high)
    for i in range(bits.size):
        b = bits[i] & _ABS
        if (b >> np.uint32(16)) == wanted:
            counts[b & np.uint32(0xFFFF)] += 1


@njit(nogil=True, cache=True, fastmath=_SUM)
def count_equal(bits: Array, threshold: int) -> int:
    """How many |values| have exactly this pattern."""
    wanted = np.uint32(threshold)
    found = 0
    for i in range(bits.size):
        found += (bits[i] & _ABS) == wanted
    return found


@njit(nogil=True, cache=True)
def position_after(bits: Array, threshold: int, wanted: int) -> int:
    """The index just past the `wanted`-th |value| with this pattern (wanted ≥ 1)."""
    pattern = np.uint32(threshold)
    seen = 0
    for i in range(bits.size):
        if (bits[i] & _ABS) == pattern:
            seen += 1
            if seen == wanted:
                return i + 1
    return bits.size


@njit(nogil=True, cache=True)
def collect(bits: Array, low: int, high: int, found: Array) -> tuple[int, int]:
    """Write to `found`, in order, the |value| patterns in [low, high); returns (how many, how many are at or above high)."""
    first, stop = np.uint32(low), np.uint32(high)
    number = above = 0
    for i in range(bits.size):
        b = bits[i] & _ABS
        found[number] = b  # overwritten by the next one unless it counts: cheaper than a branch
        number += int((b >= first) & (b < stop))
        above += int(b >= stop)
    return number, above


@njit(nogil=True, cache=True, fastmath=_SUM)
def count_nonfinite(bits: Array) -> int:
    found = 0
    for i in range(bits.size):
        found += (bits[i] & _INF) == _INF
    return found


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
def keep_largest(delta: Array, bits: Array, threshold: int, ties: int, kept: Array) -> None:
    """Keep |values| above the threshold pattern, and those equal to it among the first `ties` elements."""
    pattern = np.uint32(threshold)
    zero = np.float32(0)
    for i in range(ties):
        kept[i] = delta[i] if (bits[i] & _ABS) >= pattern else zero
    for i in range(ties, delta.size):
        kept[i] = delta[i] if (bits[i] & _ABS) > pattern else zero


@njit(nogil=True, cache=True)
def drop_largest(bits: Array, threshold: int, ties: int, kept: Array) -> None:
    """The opposite: zero in `kept` what `keep_largest` would keep."""
    pattern = np.uint32(threshold)
    for i in range(ties):
        if (bits[i] & _ABS) >= pattern:
            kept[i] = np.float32(0)
    for i in range(ties, kept.size):
        if (bits[i] & _ABS) > pattern:
            kept[i] = np.float32(0)


@njit(nogil=True, cache=True)
def keep_random(delta: Array, start: int, position: int, below: int, kept: Array) -> None:
    """Keep each value with the probability that `below` stands for; `position` is the first element's place in the tensor."""
    first, limit = np.uint64(position), np.uint64(below)
    for i in range(delta.size):
        kept[i] = delta[i] if number_at(np.uint64(start), first + np.uint64(i)) < limit else np.float32(0)


@njit(nogil=True, cache=True)
def keep_with_probability(delta: Array, probability: Array, start: int, position: int, kept: Array) -> None:
    """Keep each value with its own probability."""
    first = np.uint64(position)
    for i in range(delta.size):
        uniform = np.float64(number_at(np.uint64(start), first + np.uint64(i)) >> np.uint64(11)) * 2.0**-53
        kept[i] = delta[i] if uniform < probability[i] else np.float32(0)


# ── merging ───────────────────────────────────────────────────────────────────────────────────────────────────────────────


@njit(nogil=True, cache=True)
def _add_scaled(total: Array, factor: float, part: Array) -> None:
    for j in range(part.size):
        total[j] += factor * np.float64(part[j])


@njit(nogil=True, cache=True)
def _add_agreeing(total: Array, factor: float, weight: float, part: Array, mixed: Array, divisor: Array) -> None:
    for j in range(part.size):
        value = factor * np.float64(part[j])
        agrees = ((value > 0.0) & (total[j] >= 0.0)) | ((value < 0.0) & (total[j] < 0.0))
        mixed[j] += value if agrees else 0.0
        divisor[j] += weight if agrees else 0.0


@njit(nogil=True, cache=True)
def _divide(mixed: Array, divisor: Array) -> None:
    for j in range(mixed.size):
        by = divisor[j]
        mixed[j] = mixed[j] / (by if by != 0.0 else 1.0)


@njit(nogil=True, cache=True)
def _finish(reference: Array, strength: float, mixed: Array, out: Array) -> None:
    for j in range(out.size):
        out[j] = np.float32(np.float64(reference[j]) + strength * mixed[j])


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
def elect(reference: Array, kept: Array, factors: Array, weights: Array, normalize: bool, strength: float, out: Array) -> None:
    """Sign election: out = reference + strength · Σ agreeing factors·kept, divided by their weights if `normalize`.

    The sign of an element is that of the weighted sum, positive when it is zero; a part agrees when its own sign is the same,
    so a zero never does. A divisor of zero counts as one.
    """
    buffers = np.empty((3, CHUNK), np.float64)
    for begin in range(0, out.size, CHUNK):
        end = min(begin + CHUNK, out.size)
        total, mixed, divisor = buffers[0, : end - begin], buffers[1, : end - begin], buffers[2, : end - begin]
        total[:] = 0.0
        mixed[:] = 0.0
        divisor[:] = 0.0
        for k in range(kept.shape[0]):
            _add_scaled(total, factors[k], kept[k, begin:end])
        for k in range(kept.shape[0]):
            _add_agreeing(total, factors[k], weights[k], kept[k, begin:end], mixed, divisor)
        if normalize:
            _divide(mixed, divisor)
        _finish(reference[begin:end], strength, mixed, out[begin:end])


# ── evidence ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


@njit(nogil=True, cache=True, fastmath=_SUM)
def landing(reference: Array, grid: Array, exact: Array, rounded: Array, delta: Array) -> tuple[float, float, float, float]:
    """Sums over a block: (landed·delta, delta², delta² where the merge moves, delta² where rounding undid the move).

    landed = rounded − reference. `grid` is the reference in the output's precision: a move is undone when the rounded result
    is the same number as that.
    """
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
