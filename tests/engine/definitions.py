"""mergekit 0.1.5's methods in float64, as plainly as its code states them: the oracle.

Written from its merge_methods and sparsify modules. Ties of magnitude are broken by index here, as the engine documents; mergekit
leaves them to its sort. Random methods take the mask as given.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

Array = np.ndarray


def linear(values: Sequence[Array], weights: Sequence[float], normalize: bool = True) -> Array:
    total = sum(w * v for w, v in zip(weights, values, strict=True))
    return total / sum(weights) if normalize else total


def slerp(base: Array, other: Array, t: float) -> Array:
    a, b = base.ravel(), other.ravel()
    norms = [n if n > 1e-8 else 1.0 for n in (np.linalg.norm(a), np.linalg.norm(b))]
    dot = float(np.clip((a / norms[0]) @ (b / norms[1]), -1, 1))
    if abs(dot) > 0.9995:
        return (1 - t) * base + t * other
    theta = math.acos(dot)
    return (math.sin((1 - t) * theta) * base + math.sin(t * theta) * other) / math.sin(theta)


def nuslerp(first: Array, second: Array, weights: Sequence[float], base: Array | None) -> Array:
    t = weights[1] / sum(weights)
    zero = np.zeros_like(first) if base is None else base
    a, b = (first - zero).ravel(), (second - zero).ravel()
    cosine = float(np.clip(a @ b / (max(np.linalg.norm(a), 1e-7) * max(np.linalg.norm(b), 1e-7)), -1, 1))
    if 1 - cosine**2 <= 1e-16:
        return zero + ((1 - t) * a + t * b).reshape(first.shape)
    theta = math.acos(cosine)
    return zero + ((math.sin((1 - t) * theta) * a + math.sin(t * theta) * b) / math.sin(theta)).reshape(first.shape)


def nuslerp_by_rows(first: Array, second: Array, weights: Sequence[float], base: Array | None, columns: bool = False) -> Array:
    """nuslerp_flatten: false; with `columns` nuslerp_row_wise, whose name says the opposite."""
    zero = np.zeros_like(first) if base is None else base
    if first.ndim < 2:
        return nuslerp(first, second, weights, base)
    turned = [np.swapaxes(v, 0, -1) if columns else v for v in (first, second, zero)]
    rows = [v.reshape(-1, turned[0].shape[-1]) for v in turned]
    merged = np.stack([nuslerp(a, b, weights, z) for a, b, z in zip(*rows, strict=True)]).reshape(turned[0].shape)
    return np.swapaxes(merged, 0, -1) if columns else merged


def multislerp(values: Sequence[Array], weights: Sequence[float], base: Array | None, eps: float = 1e-8) -> Array:
    if len(values) == 1:
        return values[0]
    zero = np.zeros_like(values[0]) if base is None else base
    flat = np.stack([(v - zero).ravel() for v in values])
    w = np.array(weights) / sum(weights)
    norms = np.linalg.norm(flat, axis=1, keepdims=True)
    unit = flat / (norms + eps)
    mean = (unit * w[:, None]).sum(0)
    mean /= np.linalg.norm(mean)
    tangent = ((unit - (unit * mean).sum(1, keepdims=True) * mean) * w[:, None]).sum(0)
    length = np.linalg.norm(tangent) + eps
    result = (mean * math.cos(length) + tangent * (math.sin(length) / length)) * (norms[:, 0] * w).sum()
    return zero + result.reshape(zero.shape)


def model_stock(base: Array, values: Sequence[Array]) -> Array:
    offsets = [(v - base).ravel() for v in values]
    cosines = [
        np.clip(a @ b / max(np.linalg.norm(a) * np.linalg.norm(b), 1e-6), -1, 1)
        for i, a in enumerate(offsets)
        for b in offsets[i + 1 :]
    ]
    cosine, count = float(np.mean(cosines)), len(values)
    denominator = 1 + (count - 1) * cosine
    t = 0.0 if abs(denominator) < 1e-6 else count * cosine / denominator
    return t * sum(values) / count + (1 - t) * base


def model_stock_by_rows(base: Array, values: Sequence[Array]) -> Array:
    """filter_wise."""
    if base.ndim < 2:
        return model_stock(base, values)
    rows = [v.reshape(-1, base.shape[-1]) for v in (base, *values)]
    return np.stack([model_stock(b, others) for b, *others in zip(*rows, strict=True)]).reshape(base.shape)


def karcher(values: Sequence[Array], max_iter: int = 10, tol: float = 1e-5) -> Array:
    if len(values) == 1:
        return values[0]
    flat = [v.ravel() for v in values]
    norms = [float(np.linalg.norm(v)) for v in flat]
    units = [v / n for v, n in zip(flat, norms, strict=True) if n > tol]
    if not units:
        return 0 * values[0]
    mean = sum(units) / len(units)
    mean = units[0] if np.linalg.norm(mean) < tol else mean / np.linalg.norm(mean)
    for _ in range(max_iter):
        tangent = np.zeros_like(mean)
        for unit in units:
            cosine = float(np.clip(mean @ unit, -1, 1))
            if (theta := math.acos(cosine)) >= tol:
                tangent += theta / math.sin(theta) * (unit - cosine * mean) / len(units)
        if (step := float(np.linalg.norm(tangent))) < tol:
            break
        mean = math.cos(step) * mean + math.sin(step) * tangent / step
        mean /= np.linalg.norm(mean)
    return (sum(norms) / len(norms) * mean).reshape(values[0].shape)


def nearswap(base: Array, other: Array, t: float) -> Array:
    share = np.clip(t / np.maximum(np.abs(base - other), 1e-6), 0, 1)
    return share * other + (1 - share) * base


def ram(base: Array, values: Sequence[Array], r: float = 0.0, alpha: float = 0.0, epsilon: float = 1e-5) -> Array:
    """RAM; with r and alpha its tensor-local plus."""
    deltas = np.stack([v - base for v in values]).reshape(len(values), -1)
    nonzero = np.abs(deltas) > epsilon
    counts = nonzero.sum(axis=0)
    alone, shared = nonzero & (counts == 1), nonzero & (counts > 1)
    ratio = shared.sum(axis=1) / np.maximum(alone.sum(axis=1), epsilon)
    factors = 1 + r * np.clip(ratio, 0, alpha)
    merged = (deltas * alone * factors[:, None] + deltas * shared / np.maximum(counts, 1)).sum(axis=0)
    return base + merged.reshape(base.shape)


def sce(base: Array, values: Sequence[Array], select_topk: float = 1.0) -> Array:
    deltas = np.stack([v - base for v in values])
    if select_topk < 1:
        variance = deltas.var(axis=0)
        k = int(np.count_nonzero(variance.astype(np.float32)) * select_topk)
        mask = np.zeros(variance.size)
        mask[np.argsort(-variance.ravel().astype(np.float32), kind="stable")[:k]] = 1
        deltas = deltas * mask.reshape(variance.shape)
    agrees = np.sign(deltas) == np.where(deltas.sum(axis=0) >= 0, 1, -1)
    energy = (deltas**2).reshape(len(values), -1).mean(axis=1)
    weights = energy / energy.sum() if energy.sum() >= 1e-6 else np.full(len(values), 1 / len(values))
    erased = weights.reshape(-1, *[1] * base.ndim) * agrees
    return base + (deltas * erased).sum(axis=0) / np.maximum(erased.sum(axis=0), 1e-6)


def arcee_fusion(base: Array, other: Array) -> Array:
    """With exact quartiles; mergekit draws a sample of tensors beyond a million elements."""

    def softmax(values: Array) -> Array:
        powers = np.exp(values - values.max(axis=-1, keepdims=True))
        return powers / powers.sum(axis=-1, keepdims=True) + 1e-8

    p, q = softmax(other), softmax(base)
    scores = np.abs(other - base) * (p * np.log(p / q)).sum(axis=-1, keepdims=True)
    ordered = np.sort(scores.ravel())
    low, middle, high = (ordered[int(share * (ordered.size - 1))] for share in (0.25, 0.5, 0.75))
    return base + (other - base) * (scores >= middle + 1.5 * (high - low))


def magnitude_mask(delta: Array, density: float) -> Array:
    if density >= 1:
        return np.ones(delta.shape, bool)
    k = max(1, int(density * delta.size))
    mask = np.zeros(delta.size, bool)
    mask[np.argsort(-np.abs(delta.astype(np.float32)).ravel(), kind="stable")[:k]] = True
    return mask.reshape(delta.shape)


def outlier_mask(delta: Array, density: float, gamma: float) -> Array:
    if density >= 1:
        return np.ones(delta.shape, bool)
    target, top = int(density * delta.size), int(gamma * delta.size)
    bottom = max(0, delta.size - target - top)
    from_top = np.argsort(-np.abs(delta.astype(np.float32)).ravel(), kind="stable")
    mask = np.zeros(delta.size, bool)
    mask[from_top[delta.size - bottom - target : delta.size - bottom]] = True
    return mask.reshape(delta.shape)


def task_vectors(
    base: Array,
    values: Sequence[Array],
    weights: Sequence[float],
    masks: Sequence[Array],
    *,
    elect: bool,
    normalize: bool,
    rescale: bool = False,
    strength: float = 1.0,
) -> Array:
    """mergekit's generalised task arithmetic after sparsification by `masks`."""
    deltas = []
    for value, mask in zip(values, masks, strict=True):
        delta = value - base
        kept = delta * mask
        before, after = np.abs(delta).sum(), np.abs(kept).sum()
        deltas.append(kept * (before / after) if rescale and not mask.all() and min(before, after) >= 1e-7 else kept)
    w = np.array(weights, np.float64).reshape(-1, *([1] * base.ndim))
    weighted = np.stack(deltas) * w
    if elect:
        majority = np.where(weighted.sum(0) >= 0, 1, -1)
        agrees = np.sign(weighted) == majority
        mixed, divisor = (weighted * agrees).sum(0), (w * agrees).sum(0)
        divisor[divisor == 0] = 1
    else:
        mixed, divisor = weighted.sum(0), w.sum(0)
        divisor[np.abs(divisor) < 1e-8] = 1
    if normalize:
        mixed = mixed / divisor
    return base + strength * mixed
