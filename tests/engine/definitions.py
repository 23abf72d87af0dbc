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
