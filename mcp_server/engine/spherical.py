"""Methods whose factors depend on lengths and angles: slerp, nuslerp, multislerp, karcher, model_stock.

Each of them is, tensor by tensor, a weighted sum of its inputs whose factors follow from the inputs' inner products. So one
reading pass sums those products in float64, and the merge itself is the same weighted sum that `linear` uses. Formulas are
mergekit 0.1.5's; its multislerp reduces to this form because its tangent vectors, weighted, always sum to zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from mcp_server.engine import kernels
from mcp_server.engine.blocks import Block
from mcp_server.engine.deltas import OpenTensor
from mcp_server.engine.filters import share_of_second
from mcp_server.engine.thread_pool import ThreadPool, Workspace
from mcp_server.errors import Malformed

Array = np.ndarray[Any, Any]
Factors = tuple[float, list[float]]
"""(factor of the reference, factor of each delta)"""

STRAIGHT = 0.9995
"""Above this |cosine| slerp interpolates along the straight line, as mergekit does."""


def gram(tensor: OpenTensor, pool: ThreadPool, with_reference: bool) -> Array:
    """Inner products of the deltas with each other; row and column 0 are the reference's if asked for."""

    def work(workspace: Workspace, block: Block) -> list[float]:
        reference, deltas = tensor.load_all(workspace, block)
        rows = [reference, *deltas] if with_reference else list(deltas)
        return [kernels.dot(a, b) for i, a in enumerate(rows) for b in rows[i:]]

    size = len(tensor.deltas) + with_reference
    products = np.zeros((size, size))
    sums = np.sum(pool.run(work, tensor.blocks), axis=0) if tensor.blocks else np.zeros(size * (size + 1) // 2)
    products[np.triu_indices(size)] = sums
    return products + np.triu(products, 1).T


def slerp(tensor: OpenTensor, pool: ThreadPool) -> Factors:
    """From the base (t = 0) to the other (t = 1) along the arc between them."""
    t = tensor.plan.shared["t"]
    products = gram(tensor, pool, with_reference=True)
    base, other, inner = products[0, 0], products.sum(), products[0].sum()  # other = reference + delta
    lengths = [length if length > 1e-8 else 1.0 for length in (math.sqrt(max(base, 0.0)), math.sqrt(max(other, 0.0)))]
    cosine = min(1.0, max(-1.0, inner / (lengths[0] * lengths[1])))
    if abs(cosine) > STRAIGHT:
        return 1.0, [t]
    angle = math.acos(cosine)
    of_base, of_other = math.sin((1 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle)
    return of_base + of_other, [of_other]


def nuslerp(tensor: OpenTensor, pool: ThreadPool) -> Factors:
    """Slerp of two sources, or of their deltas when there is a base; t is the second's share of the weights."""
    first, second = (values["weight"] for values in tensor.parameters)
    t = share_of_second(first, second)
    products = gram(tensor, pool, with_reference=False)
    lengths = [max(math.sqrt(products[i, i]), 1e-7) for i in range(2)]
    cosine = min(1.0, max(-1.0, products[0, 1] / (lengths[0] * lengths[1])))
    if 1 - cosine**2 <= 1e-16:
        factors = [1 - t, t]
    else:
        angle = math.acos(cosine)
        factors = [math.sin((1 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle)]
    return 1.0, factors


def multislerp(tensor: OpenTensor, pool: ThreadPool) -> Factors:
    """The normalised weighted mean of the directions, at the weighted mean length."""
    weights = np.array([values["weight"] for values in tensor.parameters])
    if len(weights) == 1:
        return 1.0, [1.0]
    if tensor.plan.shared["normalize_weights"]:
        weights = weights / weights.sum()
    eps = tensor.plan.shared["eps"]
    products = gram(tensor, pool, with_reference=False)
    lengths = np.sqrt(np.diag(products))
    if not lengths.any():  # no source changes this tensor (mergekit stops here); adapters leave most tensors alone
        return 1.0, [0.0] * len(weights)
    per_unit = weights / (lengths + eps)
    mean_length = math.sqrt(max(float(per_unit @ products @ per_unit), 0.0))
    if mean_length < eps:
        if len(weights) == 2:
            return 1.0, list(weights)
        raise Malformed(
            f"the weighted directions at {tensor.plan.name} cancel out, so multislerp has no result", "change the weights"
        )
    factors = per_unit * (float(lengths @ weights) / mean_length) * math.cos(eps)
    return 1.0, list(factors)


def karcher(tensor: OpenTensor, pool: ThreadPool) -> Factors:
    """The Karcher mean of the directions, at the mean length: iterated from the normalised sum, all in the span of the sources.

    Every vector is held by its coefficients over the sources' values, so that the iteration needs no further pass.
    """
    count, has_reference = len(tensor.deltas), tensor.reference is not None
    if count == 1:
        return (1.0 if has_reference else 0.0), [1.0]
    products = gram(tensor, pool, with_reference=has_reference)
    if has_reference:  # of the values, reference + delta
        products = products[1:, 1:] + products[1:, :1] + products[:1, 1:] + products[0, 0]
    tol, lengths = tensor.plan.shared["tol"], np.sqrt(np.maximum(np.diag(products), 0.0))
    valid = [i for i in range(count) if lengths[i] > tol]
    if not valid:
        return 0.0, [0.0] * count
    units = np.zeros((len(valid), count))
    units[range(len(valid)), valid] = 1 / lengths[valid]

    def length(vector: Array) -> float:
        return math.sqrt(max(float(vector @ products @ vector), 0.0))

    mean: Array = units.mean(axis=0)
    mean = units[0] if length(mean) < tol else mean / length(mean)
    for _ in range(int(tensor.plan.shared["max_iter"])):
        tangent = np.zeros(count)
        for unit in units:
            cosine = min(1.0, max(-1.0, float(mean @ products @ unit)))
            angle = math.acos(cosine)
            if angle >= tol:
                tangent += angle / math.sin(angle) * (unit - cosine * mean) / len(valid)
        step = length(tangent)
        if step < tol:
            break
        mean = math.cos(step) * mean + math.sin(step) * (tangent / step)
        if length(mean) > tol:
            mean = mean / length(mean)
    factors = [float(factor) for factor in mean * lengths.mean()]
    return (sum(factors) if has_reference else 0.0), factors


def model_stock(tensor: OpenTensor, pool: ThreadPool) -> Factors:
    """Between the base and the sources' average, closer to the average the more the deltas agree in direction."""
    products = gram(tensor, pool, with_reference=False)
    count = len(tensor.deltas)
    lengths = np.sqrt(np.diag(products))
    pairs = [(i, j) for i in range(count) for j in range(i + 1, count)]
    cosine = float(np.mean([np.clip(products[i, j] / max(lengths[i] * lengths[j], 1e-6), -1, 1) for i, j in pairs]))
    denominator = 1 + (count - 1) * cosine
    t = 0.0 if abs(denominator) < 1e-6 else count * cosine / denominator
    return 1.0, [t / count] * count


FACTORS: dict[str, Callable[[OpenTensor, ThreadPool], Factors]] = {
    "slerp": slerp,
    "nuslerp": nuslerp,
    "multislerp": multislerp,
    "karcher": karcher,
    "model_stock": model_stock,
}
