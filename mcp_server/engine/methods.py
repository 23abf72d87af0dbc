"""The methods, in three families. Each tensor is prepared (passes that only read), then merged block by block.

Weighted sums   out = scale·reference + Σ factor·delta. linear and task_arithmetic know their factors from the recipe; slerp,
                nuslerp, multislerp, karcher and model_stock get them from the sources' lengths and angles: `spherical`, one
                reading pass.
Sparse sums     each delta is first sparsified, by magnitude or at random: `sparsify`. Then the parts are added, with a sign
                election in the ties methods.
Selective       each element decides how much of each delta it takes: `selective`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from mcp_server.engine import filters, kernels, selective, spherical
from mcp_server.engine.blocks import Block
from mcp_server.engine.deltas import OpenTensor
from mcp_server.engine.signatures import SIGNATURES
from mcp_server.engine.sparsify import Sparsifier, prepare_sparsifier
from mcp_server.engine.thread_pool import ThreadPool, Workspace

Array = np.ndarray[Any, Any]
MergeBlock = Callable[[Workspace, Block, Array, Array, Array], None]
"""(workspace, block, reference, stack of deltas, out): writes the merged block, float32, to out."""


def prepare(method: str, tensor: OpenTensor, pool: ThreadPool, seed: int) -> MergeBlock:
    """Read what the method must know about the whole tensor; returns how to merge one block of it."""
    signature = SIGNATURES[method]
    if method in filters.BY_FILTER and (by := filters.filters_of(tensor.plan)):
        return filters.BY_FILTER[method](tensor, pool, by)
    if method in spherical.FACTORS:
        return weighted(*spherical.FACTORS[method](tensor, pool))
    if method in selective.PREPARE:
        return selective.PREPARE[method](tensor, pool)
    if method == "passthrough":
        scale = tensor.parameters[0]["scale"]
        return linear(tensor, [1.0 if scale is None else scale], normalize=False)
    weights = [values["weight"] for values in tensor.parameters]
    shared = tensor.plan.shared
    if method == "linear":
        return linear(tensor, weights, shared["normalize"])
    if all(tensor.untouched(i) for i in range(len(weights))):  # the base as it is
        return weighted(1.0, [0.0] * len(weights))
    lambda_ = shared["lambda"]
    if not signature.elect:
        total = sum(weights)
        if shared["normalize"] and abs(total) >= 1e-8:
            lambda_ /= total
    if signature.sparsify == "none":
        return weighted(1.0, [lambda_ * weight for weight in weights])
    sparsifier = prepare_sparsifier(method, tensor, pool, seed)
    return Sparse(sparsifier, np.array(weights), lambda_, shared["normalize"], signature.elect)


@dataclass(frozen=True)
class Weighted:
    """out = scale·reference + Σ factor·delta."""

    scale: float
    factors: Array

    def __call__(self, _workspace: Workspace, _block: Block, reference: Array, deltas: Array, out: Array) -> None:
        kernels.weighted_sum(reference, self.scale, deltas, self.factors, out)


def weighted(scale: float, factors: list[float]) -> Weighted:
    return Weighted(scale, np.array(factors, np.float64))


def linear(tensor: OpenTensor, weights: list[float], normalize: bool) -> MergeBlock:
    """Σ weight·value (÷ Σ weight). Adapters of one model share it as their reference; its own weight is then Σ weight."""
    total = sum(weights)
    if normalize:
        weights = [weight / total for weight in weights]
        total = 1.0
    return weighted(total if tensor.reference is not None else 0.0, weights)


@dataclass(frozen=True)
class Sparse:
    """Sparsify every delta, then add: all parts, or those that agree with the elected sign."""

    sparsifier: Sparsifier
    weights: Array
    lambda_: float
    normalize: bool
    elects: bool

    def __call__(self, workspace: Workspace, block: Block, reference: Array, deltas: Array, out: Array) -> None:
        if self.elects:
            parts, thresholds, ties = self.sparsifier.parts(workspace, block, deltas)
            factors = self.weights * self.sparsifier.scales
            kernels.elect(reference, parts, thresholds, ties, factors, self.weights, self.normalize, self.lambda_, out)
        else:
            kept = self.sparsifier.kept(workspace, block, deltas)
            kernels.weighted_sum(reference, 1.0, kept, self.lambda_ * self.weights * self.sparsifier.scales, out)
