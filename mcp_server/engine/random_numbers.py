"""Random numbers that depend on where they are used, not on when: SplitMix64 evaluated at a position.

DARE and DELLA must give the same bytes for any number of threads and after an interruption, so there is no generator with a
state. Element e of a tensor reads the e-th output of a SplitMix64 stream whose start is a hash of (seed, source, tensor).
Source: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014, with Stafford's mixing constants (13).
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from numba import njit

Array = np.ndarray[Any, Any]


def stream_start(seed: int, source: int, tensor: str) -> np.uint64:
    """The start of the stream for one source's version of one tensor."""
    digest = hashlib.blake2b(f"{seed}/{source}/{tensor}".encode(), digest_size=8).digest()
    return np.uint64(int.from_bytes(digest, "little"))


def keep_below(density: float) -> np.uint64:
    """An element is kept when its number is below this: probability `density` to within 2**-53."""
    return np.uint64(min(int(density * 2.0**64), 2**64 - 1))


@njit(nogil=True, cache=True, inline="always")
def number_at(start: np.uint64, position: np.uint64) -> np.uint64:
    """64 uniform bits for one position of a stream."""
    z = start + (position + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


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
