"""The products of factors that LoHa and LoKr make their updates of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]


def hadamard(held: dict[str, Array]) -> Array:
    product: Array = (held["hada_w1_a"] @ held["hada_w1_b"]) * (held["hada_w2_a"] @ held["hada_w2_b"])
    return product


def kronecker(held: dict[str, Array]) -> Array:
    import numpy as np

    one = held["lokr_w1"] if "lokr_w1" in held else held["lokr_w1_a"] @ held["lokr_w1_b"]
    two = held["lokr_w2"] if "lokr_w2" in held else held["lokr_w2_a"] @ held["lokr_w2_b"]
    product: Array = np.kron(one, two)
    return product
