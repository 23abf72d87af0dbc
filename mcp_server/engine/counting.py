"""The loops behind a selection: how many |values| have which bit pattern, and which lie in a window of patterns.

The bit pattern of a float32's magnitude grows with the magnitude; arrays are patterns (uint32), contiguous.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from mcp_server.engine.blocks import CHUNK

Array = np.ndarray[Any, Any]

_SUM = {"reassoc"}  # sums may be reassociated
_ABS = np.uint32(0x7FFFFFFF)


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


@njit(nogil=True, cache=True, fastmath=_SUM)
def _mark(bits: Array, first: int, width: int, stop: int, marks: Array) -> int:
    """marks[j] = |value| pattern in [first, first + width); returns how many are at or above `stop`."""
    above = 0
    for j in range(bits.size):
        b = np.uint32(bits[j] & _ABS)
        marks[j] = np.uint8(np.uint32(b - first) < width)
        above += int(b >= stop)
    return above


@njit(nogil=True, cache=True)
def collect(bits: Array, low: int, high: int, found: Array) -> tuple[int, int]:
    """Write to `found`, in order, the |value| patterns in [low, high); returns (how many, how many are at or above high).

    Few are in the window, so whole groups of eight are passed over at a time. `found` needs room for eight more than it gets.
    """
    first, width, stop = np.uint32(low), np.uint32(high - low), np.uint32(high)
    marks = np.zeros(CHUNK, np.uint8)
    groups = marks.view(np.uint64)
    number = above = 0
    for begin in range(0, bits.size, CHUNK):
        part = bits[begin : min(begin + CHUNK, bits.size)]
        marks[part.size :] = 0
        above += _mark(part, first, width, stop, marks)
        for group in range(groups.size):
            if groups[group]:
                for j in range(8 * group, min(8 * group + 8, part.size)):
                    found[number] = part[j] & _ABS  # overwritten by the next one unless it counts: cheaper than a branch
                    number += int(marks[j])
    return number, above
