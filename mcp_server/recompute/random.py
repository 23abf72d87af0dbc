"""The random numbers of DARE and DELLA as the engine documents them, written again from the document.

Element e of a tensor reads output e of a SplitMix64 stream (Steele, Lea, Flood 2014; Stafford's mix 13) that starts at the first
8 bytes, little endian, of BLAKE2b over "seed/source/tensor": the source counted among those that are not the base.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

_GOLDEN, _MIX_1, _MIX_2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def uniform_bits(seed: int, source: int, tensor: str, first: int, count: int) -> Array:
    """64 uniform bits (uint64) for elements `first` to `first + count` of a tensor."""
    import numpy as np

    start = int.from_bytes(blake2b(f"{seed}/{source}/{tensor}".encode(), digest_size=8).digest(), "little")
    state = np.arange(first + 1, first + count + 1, dtype=np.uint64) * np.uint64(_GOLDEN) + np.uint64(start)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(_MIX_1)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(_MIX_2)
    mixed: Array = state ^ (state >> np.uint64(31))
    return mixed


def kept_with(density: float, bits: Array) -> Array:
    """Which elements are kept with one probability."""
    import numpy as np

    kept: Array = bits < np.uint64(min(int(density * 2.0**64), 2**64 - 1))
    return kept


def kept_by(probability: Array, bits: Array) -> Array:
    """Which elements are kept, each with a probability of its own."""
    import numpy as np

    kept: Array = (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53 < probability
    return kept
