"""nuslerp and model_stock by filters: lengths and angles of every row, or column, instead of the whole tensor's.

Formulas are mergekit 0.1.5's: `filter_wise` takes the rows of the last dimension, `nuslerp_flatten: false` too, and with
`nuslerp_row_wise` it takes what lies along the first dimension (a matrix's columns). A vector is one filter. One reading pass
sums the inner products in float64, like `spherical`; the merge is a weighted sum whose factors differ by filter.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from mcp_server.engine.blocks import SUMS_AT_ONCE, Block
from mcp_server.engine.deltas import OpenTensor
from mcp_server.engine.plan import TensorPlan
from mcp_server.engine.thread_pool import ThreadPool, Workspace

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Filters:
    """How the elements of a tensor belong to filters. Values per filter have the shape (filters, …)."""

    shape: tuple[int, ...]
    along_first: bool

    @property
    def columns(self) -> int:
        return self.shape[-1] if len(self.shape) > 1 else 1

    @property
    def lines(self) -> int:
        """Rows of the last dimension after which the filters along the first dimension repeat."""
        return math.prod(self.shape[1:-1])

    @property
    def count(self) -> int:
        if len(self.shape) < 2:
            return 1
        return math.prod(self.shape[1:]) if self.along_first else math.prod(self.shape[:-1])

    def of(self, values: Array, block: Block) -> Array:
        """The block's part of one value per filter, as it spreads over (rows, columns)."""
        if len(self.shape) < 2:
            return values.reshape(1, 1)
        if not self.along_first:
            return values[block.row : block.row + block.rows, None]
        lines = np.arange(block.row, block.row + block.rows) % self.lines
        spread: Array = values.reshape(self.lines, self.columns)[lines if self.lines > 1 else slice(0, 1)]
        return spread

    def add(self, products: Array, block: Block, total: Array) -> None:
        """Add the products of a block's elements, (rows, columns), to their filters."""
        if len(self.shape) < 2:
            total += products.sum()
        elif not self.along_first:
            total[block.row : block.row + block.rows] += products.sum(axis=1)
        else:
            lines = np.arange(block.row, block.row + block.rows) % self.lines
            by_line: Array = total.reshape(self.lines, self.columns)
            if self.lines == 1:
                by_line += products.sum(axis=0)
            else:
                np.add.at(by_line, lines, products)


def filters_of(plan: TensorPlan) -> Filters | None:
    """The filters that the recipe asks for; None for one angle per tensor."""
    if plan.shared.get("filter_wise"):
        return Filters(plan.shape, along_first=False)
    if plan.shared.get("nuslerp_flatten", True):
        return None
    return Filters(plan.shape, along_first=bool(plan.shared.get("nuslerp_row_wise")))


def grams(tensor: OpenTensor, pool: ThreadPool, filters: Filters) -> dict[tuple[int, int], Array]:
    """Inner products of the deltas by filter: (first, second) → float64, one per filter."""
    pairs = list(itertools.combinations_with_replacement(range(len(tensor.deltas)), 2))
    total = {pair: np.zeros(filters.count) for pair in pairs}
    apart = len(filters.shape) > 1 and not filters.along_first  # each row lies in one block
    for first in range(0, len(tensor.blocks), SUMS_AT_ONCE):
        blocks = tensor.blocks[first : first + SUMS_AT_ONCE]
        waiting: dict[int, dict[tuple[int, int], Array]] = {}

        def work(workspace: Workspace, block: Block, _: None, waiting: dict[int, dict[tuple[int, int], Array]] = waiting) -> None:
            deltas = tensor.load_all(workspace, block)[1]
            wide = [delta.reshape(block.rows, block.columns).astype(np.float64) for delta in deltas]
            into = total if apart else waiting.setdefault(block.index, {pair: np.zeros(filters.count) for pair in pairs})
            for a, b in pairs:
                filters.add(wide[a] * wide[b], block, into[a, b])

        pool.fold(work, blocks, lambda: None)
        for index in sorted(waiting):
            for pair in pairs:
                total[pair] += waiting[index][pair]
    return total


@dataclass(frozen=True)
class ByFilter:
    """out = reference + Σ factor·delta, a factor for every filter and delta."""

    filters: Filters
    factors: list[Array]

    def __call__(self, _workspace: Workspace, block: Block, reference: Array, deltas: Array, out: Array) -> None:
        total = np.zeros((block.rows, block.columns))
        if reference.size:
            total += reference.reshape(total.shape)
        for factor, delta in zip(self.factors, deltas, strict=True):
            total += self.filters.of(factor, block) * delta.reshape(total.shape)
        out[:] = total.reshape(-1)


def nuslerp(tensor: OpenTensor, pool: ThreadPool, filters: Filters) -> ByFilter:
    first, second = (values["weight"] for values in tensor.parameters)
    t = share_of_second(first, second)
    products = grams(tensor, pool, filters)
    lengths = [np.maximum(np.sqrt(products[i, i]), 1e-7) for i in range(2)]
    cosine = np.clip(products[0, 1] / (lengths[0] * lengths[1]), -1, 1)
    straight = 1 - cosine**2 <= 1e-16
    angle = np.arccos(np.where(straight, 0.0, cosine))
    return ByFilter(
        filters,
        [np.where(straight, plain, np.sin(plain * angle) / np.sin(angle)) for plain in (1 - t, t)],
    )


def model_stock(tensor: OpenTensor, pool: ThreadPool, filters: Filters) -> ByFilter:
    products, count = grams(tensor, pool, filters), len(tensor.deltas)
    lengths = [np.sqrt(products[i, i]) for i in range(count)]
    pairs = list(itertools.combinations(range(count), 2))
    cosine = sum(np.clip(products[i, j] / np.maximum(lengths[i] * lengths[j], 1e-6), -1, 1) for i, j in pairs) / len(pairs)
    denominator = 1 + (count - 1) * cosine
    singular = np.abs(denominator) < 1e-6
    t = np.where(singular, 0.0, count * cosine / np.where(singular, 1.0, denominator))
    return ByFilter(filters, [t / count] * count)


def share_of_second(first: float, second: float) -> float:
    """nuslerp's t: the second source's share of the weights; half where they cancel, as in mergekit 0.1.5."""
    total = first + second
    return 0.5 if abs(total) < 1e-6 else second / total


BY_FILTER: Final[dict[str, Callable[[OpenTensor, ThreadPool, Filters], ByFilter]]] = {
    "nuslerp": nuslerp,
    "model_stock": model_stock,
}
