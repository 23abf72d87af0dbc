"""Sparsification: which elements of a delta a method keeps, and by how much the kept ones are scaled up.

At density 0 nothing of a delta is kept, at 1 all of it, by every method.

magnitude   ties          the k = max(1, floor(density·n)) largest of the tensor
outliers    breadcrumbs   the largest but for the top gamma·n
random      dare          each with probability density
della       della         each with a probability that grows with its rank in its row, density ± epsilon

`rescale` restores the L1 norm of the whole tensor's delta, as mergekit does (the DARE paper divides by density instead). Where
mergekit sorts, equal magnitudes come in an order of its sort; here the lower index counts as the larger.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np

from mcp_server.engine import kernels, random_numbers
from mcp_server.engine.blocks import Block
from mcp_server.engine.deltas import OpenTensor
from mcp_server.engine.selection import Cut, largest
from mcp_server.engine.signatures import SIGNATURES
from mcp_server.engine.thread_pool import ThreadPool, Workspace

Array = np.ndarray[Any, Any]

NOTHING = 1 << 31
"""A threshold above every pattern of a float32's magnitude: nothing of the delta is kept."""
_NEGLIGIBLE = 1e-7
"""Below this L1 norm mergekit does not rescale."""


class Sparsifier(ABC):
    """What to keep of each delta of one tensor. `scales` multiply what was kept; 1 where nothing is rescaled."""

    def __init__(self, tensor: OpenTensor) -> None:
        every = enumerate(tensor.parameters)
        self.densities = [1.0 if tensor.untouched(i) else values["density"] for i, values in every]
        self.scales: Array = np.ones(len(self.densities))
        self._nothing = np.zeros(len(self.densities), np.int64)

    def keep(self, index: int, block: Block, delta: Array, kept: Array) -> None:
        """Write to `kept` what stays of delta `index`, zero elsewhere."""
        if self.densities[index] >= 1:
            kept[:] = delta
        elif self.densities[index] <= 0:
            kept[:] = 0
        else:
            self.sparsify(index, block, delta, kept)

    def kept(self, workspace: Workspace, block: Block, deltas: Array) -> Array:
        """What stays of every delta of a block."""
        kept = workspace.stack("kept", *deltas.shape)
        for index, delta in enumerate(deltas):
            self.keep(index, block, delta, kept[index])
        return kept

    def parts(self, workspace: Workspace, block: Block, deltas: Array) -> tuple[Array, Array, Array]:
        """The same for `kernels.elect`: a stack, and the thresholds and ties by which the kernel still have to sparsify it."""
        return self.kept(workspace, block, deltas), self._nothing, self._nothing

    @abstractmethod
    def sparsify(self, index: int, block: Block, delta: Array, kept: Array) -> None: ...


def prepare_sparsifier(method: str, tensor: OpenTensor, pool: ThreadPool, seed: int) -> Sparsifier:
    kind = SIGNATURES[method].sparsify
    sparsifier: Sparsifier
    if kind == "magnitude":
        sparsifier = Largest(tensor, pool)
    elif kind == "outliers":
        sparsifier = WithoutOutliers(tensor, pool)
    else:
        sparsifier = (Random if kind == "random" else ByRank)(tensor, seed)
    if tensor.plan.shared["rescale"]:
        _restore_norms(sparsifier, tensor, pool)
    return sparsifier


class Largest(Sparsifier):
    def __init__(self, tensor: OpenTensor, pool: ThreadPool) -> None:
        super().__init__(tensor)
        count = tensor.plan.count
        wanted = [(i, max(1, int(d * count))) for i, d in enumerate(self.densities) if 0 < d < 1 and count]
        self.cuts = dict(zip([i for i, _ in wanted], largest(tensor, wanted, pool) if wanted else [], strict=True))

    def sparsify(self, index: int, block: Block, delta: Array, kept: Array) -> None:
        cut = self.cuts[index]
        kernels.keep_largest(delta.view(np.uint32), cut.pattern, cut.ties_in(block), kept.view(np.uint32))

    def parts(self, _workspace: Workspace, block: Block, deltas: Array) -> tuple[Array, Array, Array]:
        thresholds, ties = self._nothing.copy(), self._nothing.copy()
        for index, cut in self.cuts.items():
            thresholds[index], ties[index] = cut.pattern, cut.ties_in(block)
        thresholds[[density <= 0 for density in self.densities]] = NOTHING
        return deltas, thresholds, ties


class WithoutOutliers(Sparsifier):
    """Ranks from `skipped` to `skipped + kept`, counted from the largest; both may be empty."""

    def __init__(self, tensor: OpenTensor, pool: ThreadPool) -> None:
        super().__init__(tensor)
        count = tensor.plan.count
        wanted, self.cuts = [], {}
        for i, (density, values) in enumerate(zip(self.densities, tensor.parameters, strict=True)):
            if density >= 1 or density <= 0:
                continue
            target = int(density * count)
            bottom = max(0, count - target - int(values["gamma"] * count))
            skipped = count - bottom - target
            wanted += [(i, skipped), (i, skipped + target)]
        found = iter(largest(tensor, [(i, k) for i, k in wanted if k], pool) if any(k for _, k in wanted) else [])
        cuts: list[Cut | None] = [next(found) if k else None for _, k in wanted]
        for (i, _), skip, stop in zip(wanted[::2], cuts[::2], cuts[1::2], strict=True):
            self.cuts[i] = (skip, stop)

    def sparsify(self, index: int, block: Block, delta: Array, kept: Array) -> None:
        skip, stop = self.cuts[index]
        if stop is None:
            kept[:] = 0
            return
        bits, patterns = delta.view(np.uint32), kept.view(np.uint32)
        kernels.keep_largest(bits, stop.pattern, stop.ties_in(block), patterns)
        if skip is not None:
            kernels.drop_largest(bits, skip.pattern, skip.ties_in(block), patterns)


class Random(Sparsifier):
    def __init__(self, tensor: OpenTensor, seed: int) -> None:
        super().__init__(tensor)
        self.starts = [random_numbers.stream_start(seed, i, tensor.plan.name) for i in range(len(self.densities))]
        self.below = [random_numbers.keep_below(density) for density in self.densities]

    def sparsify(self, index: int, block: Block, delta: Array, kept: Array) -> None:
        random_numbers.keep_random(delta, self.starts[index], np.uint64(block.start), self.below[index], kept)


class ByRank(Random):
    """DELLA: within each row of the last dimension, the smallest is kept with density − epsilon, the largest with + epsilon."""

    def __init__(self, tensor: OpenTensor, seed: int) -> None:
        super().__init__(tensor, seed)
        self.epsilons = [values["epsilon"] for values in tensor.parameters]
        self.row = tensor.plan.shape[-1] if tensor.plan.shape else 1

    def sparsify(self, index: int, block: Block, delta: Array, kept: Array) -> None:
        rows = np.abs(delta).reshape(-1, self.row)
        ranks = np.empty(rows.shape, np.float64)
        np.put_along_axis(ranks, np.argsort(rows, axis=1, kind="stable"), np.arange(self.row, dtype=np.float64)[None], axis=1)
        low, spread = self.densities[index] - self.epsilons[index], 2 * self.epsilons[index]
        probability = low + ranks.reshape(-1) / (self.row - 1) * spread
        random_numbers.keep_with_probability(delta, probability, self.starts[index], np.uint64(block.start), kept)


def _restore_norms(sparsifier: Sparsifier, tensor: OpenTensor, pool: ThreadPool) -> None:
    """Set `scales` so that each sparsified delta has the L1 norm of the whole one. One reading pass."""
    sparsified = [i for i, density in enumerate(sparsifier.densities) if 0 < density < 1]
    if not sparsified:
        return
    need = any(tensor.needs_reference(i) for i in sparsified)

    def work(workspace: Workspace, block: Block) -> list[tuple[float, float]]:
        reference = tensor.load_reference(workspace, block) if need else workspace.take("reference", 0)
        delta, kept = workspace.take("deltas", block.count), workspace.take("kept", block.count)
        sums = []
        for i in sparsified:
            tensor.load_delta(i, workspace, block, reference, delta)
            sparsifier.keep(i, block, delta, kept)
            sums.append((kernels.absolute_sum(delta), kernels.absolute_sum(kept)))
        return sums

    totals = np.sum(pool.run(work, tensor.blocks), axis=0)
    for i, (before, after) in zip(sparsified, totals.reshape(-1, 2), strict=True):
        if before >= _NEGLIGIBLE and after >= _NEGLIGIBLE:
            sparsifier.scales[i] = before / after
