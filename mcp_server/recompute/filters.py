"""nuslerp and model_stock with an angle for each row, or column, as mergekit 0.1.5's definitions state them.

A row is one of the last dimension; `nuslerp_row_wise` goes along the first dimension instead. A vector is one row.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from mcp_server.recompute.inputs import Block, Made, Span, load, share_of_second, weights_of
from mcp_server.recompute.reading import spans

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]


def asked_for(made: Made) -> bool:
    return bool(made.shared.get("filter_wise")) or made.shared.get("nuslerp_flatten") is False


def along_first(made: Made) -> bool:
    """Whether a filter lies across the rows that are read, so that the whole tensor is needed."""
    return not made.shared.get("filter_wise") and bool(made.shared.get("nuslerp_row_wise")) and len(made.shape) > 1


def by_filter(made: Made) -> Callable[[Span], Block]:
    factors = _model_stock if made.method == "model_stock" else _nuslerp
    sums = _down(made) if along_first(made) else None

    def block(span: Span) -> Block:
        import numpy as np

        base, values, deltas, size = load(made, span)
        last = made.shape[-1] if made.shape else 1
        shape = values[0].shape
        across = sums or _products([delta.reshape(-1, last) for delta in deltas], axis=1)
        parts = []
        for factor, delta in zip(factors(made, across), deltas, strict=True):
            lined = delta if sums else delta.reshape(-1, last)
            parts.append((factor[None, :] if sums else factor[:, None]) * lined)
        moved = [part.reshape(shape) for part in parts]
        total = sum(moved, np.zeros(shape)) + (base if base is not None else 0.0)
        return Block(total, 2 * size, sum((abs(part) for part in moved), np.zeros(shape)), base, deltas)

    return block


def _products(deltas: list[Array], axis: int) -> dict[tuple[int, int], Array]:
    pairs = itertools.combinations_with_replacement(range(len(deltas)), 2)
    return {(a, b): (deltas[a] * deltas[b]).sum(axis=axis) for a, b in pairs}


def _down(made: Made) -> dict[tuple[int, int], Array]:
    """Sums over the first dimension, for every place of the others."""
    total: dict[tuple[int, int], Any] = {}
    for span in spans(made.shape, full=True):
        for pair, part in _products(load(made, span)[2], axis=0).items():
            total[pair] = total.get(pair, 0.0) + part
    return total


def _nuslerp(made: Made, products: dict[tuple[int, int], Array]) -> list[Array]:
    import numpy as np

    t = share_of_second(weights_of(made))
    first, second = (np.maximum(np.sqrt(products[i, i]), 1e-7) for i in range(2))
    cosine = np.clip(products[0, 1] / (first * second), -1, 1)
    straight = 1 - cosine**2 <= 1e-16
    angle = np.arccos(np.where(straight, 0.0, cosine))
    return [np.where(straight, part, np.sin(part * angle) / np.sin(angle)) for part in (1 - t, t)]


def _model_stock(made: Made, products: dict[tuple[int, int], Array]) -> list[Array]:
    import numpy as np

    count = len(made.operands)
    cosines = [
        np.clip(products[a, b] / np.maximum(np.sqrt(products[a, a]) * np.sqrt(products[b, b]), 1e-6), -1, 1)
        for a, b in itertools.combinations(range(count), 2)
    ]
    cosine = np.mean(cosines, axis=0)
    below = 1 + (count - 1) * cosine
    flat = np.abs(below) < 1e-6
    return [np.where(flat, 0.0, cosine / np.where(flat, 1.0, below))] * count
