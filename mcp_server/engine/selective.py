"""Methods that decide for each element how much of each delta it takes: nearswap, ram, ramplus_tl, sce, arcee_fusion.

Formulas are mergekit 0.1.5's. Two of them rank the elements of a tensor by a score: sce by the variance between the sources,
arcee_fusion by |delta| times how far its row's softmax moved. Both are selected exactly and without sorting (`selection`), where
mergekit's arcee_fusion estimates its quartiles from a random million elements. Equal scores go to the lower index.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np

from mcp_server.engine import selective_kernels as kernels
from mcp_server.engine.blocks import Block
from mcp_server.engine.deltas import OpenTensor
from mcp_server.engine.selection import Cut, largest
from mcp_server.engine.sparsify import NOTHING
from mcp_server.engine.thread_pool import ThreadPool, Workspace

Array = np.ndarray[Any, Any]
MergeBlock = Callable[[Workspace, Block, Array, Array, Array], None]
Score = Callable[[Workspace, Block, Array, Array, Array], None]
"""(workspace, block, reference, deltas, out): the score of each element, not negative."""


class _Scored:
    """A tensor as `selection` sees it: its only delta is the score."""

    def __init__(self, tensor: OpenTensor, score: Score) -> None:
        self.tensor, self.score = tensor, score
        self.blocks, self.count = tensor.blocks, tensor.count

    def needs_reference(self, _index: int) -> bool:
        return self.tensor.reference is not None

    def load_reference(self, workspace: Workspace, block: Block) -> Array:
        return self.tensor.load_reference(workspace, block)

    def load_delta(self, _index: int, workspace: Workspace, block: Block, reference: Array, out: Array) -> int:
        deltas = workspace.stack("scored", len(self.tensor.deltas), block.count)
        for i, delta in enumerate(deltas):
            self.tensor.load_delta(i, workspace, block, reference, delta)
        self.score(workspace, block, reference, deltas, out)
        return 0


def nearswap(tensor: OpenTensor, _pool: ThreadPool) -> MergeBlock:
    """Move every value of the base towards the other's by at most t."""
    t = float(tensor.plan.shared["t"])
    return lambda _workspace, _block, reference, deltas, out: kernels.nearswap(reference, deltas[0], t, out)


def ram(tensor: OpenTensor, _pool: ThreadPool) -> MergeBlock:
    """Keep what one source alone changes, average what several change."""
    return _Sharing(np.float32(tensor.plan.shared["epsilon"]), np.ones(len(tensor.deltas)))


def ramplus_tl(tensor: OpenTensor, pool: ThreadPool) -> MergeBlock:
    """As ram; what one source alone changes counts 1 + r·min(shared / alone, alpha) times, by its counts in this tensor."""
    shared, epsilon, sources = tensor.plan.shared, np.float32(tensor.plan.shared["epsilon"]), len(tensor.deltas)

    def work(workspace: Workspace, block: Block) -> Array:
        _, deltas = tensor.load_all(workspace, block)
        counts = np.zeros((2, sources), np.int64)
        kernels.count_sharing(deltas, epsilon, counts[0], counts[1])
        return counts

    counts = np.sum(pool.run(work, tensor.blocks), axis=0) if tensor.blocks else np.zeros((2, sources))
    ratio = counts[0] / np.maximum(counts[1], shared["epsilon"])
    return _Sharing(epsilon, 1 + shared["r"] * np.clip(ratio, 0, shared["alpha"]))


class _Sharing:
    def __init__(self, epsilon: np.float32, factors: Array) -> None:
        self.epsilon, self.factors = epsilon, factors

    def __call__(self, _workspace: Workspace, _block: Block, reference: Array, deltas: Array, out: Array) -> None:
        kernels.ram(reference, deltas, self.epsilon, self.factors, out)


def sce(tensor: OpenTensor, pool: ThreadPool) -> MergeBlock:
    """Select the elements that vary most between the sources, weigh sources by their squared changes, erase minority signs."""
    topk, sources = float(tensor.plan.shared["select_topk"]), len(tensor.deltas)
    cut = _most_varying(tensor, pool, topk) if 0 < topk < 1 else Cut(0 if topk >= 1 else NOTHING, tensor.count)

    def spread(workspace: Workspace, block: Block, deltas: Array) -> Array:
        out = workspace.take("spread", block.count)
        kernels.variance(deltas, out)
        return out.view(np.uint32)

    def work(workspace: Workspace, block: Block) -> Array:
        _, deltas = tensor.load_all(workspace, block)
        sums = np.zeros(sources)
        kernels.energies(deltas, spread(workspace, block, deltas), cut.pattern, cut.ties_in(block), sums)
        return sums

    energy = np.sum(pool.run(work, tensor.blocks), axis=0) / tensor.count if tensor.blocks else np.zeros(sources)
    weights = energy / energy.sum() if energy.sum() >= 1e-6 else np.full(sources, 1 / sources)

    def merge(workspace: Workspace, block: Block, reference: Array, deltas: Array, out: Array) -> None:
        bits = spread(workspace, block, deltas)
        kernels.sce(reference, deltas, bits, cut.pattern, cut.ties_in(block), weights, out)

    return merge


def _most_varying(tensor: OpenTensor, pool: ThreadPool, topk: float) -> Cut:
    """The k elements of the highest variance; k is a share of those whose variance is not zero."""

    def changed(workspace: Workspace, block: Block) -> int:
        _, deltas = tensor.load_all(workspace, block)
        return int(kernels.variance(deltas, workspace.take("spread", block.count)))

    k = int(sum(pool.run(changed, tensor.blocks)) * topk)
    if k == 0:
        return Cut(NOTHING, 0)
    scored = _Scored(tensor, lambda _workspace, _block, _reference, deltas, out: kernels.variance(deltas, out))
    return largest(scored, [(0, k)], pool)[0]


def arcee_fusion(tensor: OpenTensor, pool: ThreadPool) -> MergeBlock:
    """Take the other's value where its importance reaches the median plus 1.5 times the distance of the quartiles."""
    shape = tensor.plan.shape
    if tensor.untouched(0) or not tensor.blocks:
        return lambda _workspace, _block, reference, _deltas, out: np.copyto(out, reference)
    score: Score = _by_magnitude
    if len(shape) > 1:

        def work(workspace: Workspace, block: Block) -> Array:
            reference, deltas = tensor.load_all(workspace, block)
            rows = np.empty(block.rows)
            kernels.divergence(reference, deltas[0], block.columns, rows)
            return rows

        score = _ByDivergence(np.concatenate(pool.run(work, tensor.blocks)))
    last = tensor.count - 1  # quartiles lie at these places of the scores in ascending order
    cuts = largest(_Scored(tensor, score), [(0, tensor.count - last * quarter // 4) for quarter in (1, 2, 3)], pool)
    low, middle, high = (float(np.uint32(cut.pattern).view(np.float32)) for cut in cuts)
    threshold = middle + 1.5 * (high - low)

    def merge(workspace: Workspace, block: Block, reference: Array, deltas: Array, out: Array) -> None:
        scores = workspace.take("spread", block.count)
        score(workspace, block, reference, deltas, scores)
        kernels.take_from(reference, deltas[0], scores, threshold, out)

    return merge


def _by_magnitude(_workspace: Workspace, _block: Block, _reference: Array, deltas: Array, out: Array) -> None:
    """A vector is one row: its divergence is a factor of all scores, which changes no decision."""
    np.abs(deltas[0], out=out)


class _ByDivergence:
    def __init__(self, rows: Array) -> None:
        self.rows = rows

    def __call__(self, _workspace: Workspace, block: Block, _reference: Array, deltas: Array, out: Array) -> None:
        kernels.importance(deltas[0], self.rows[block.row : block.row + block.rows], block.columns, out)


PREPARE: Final[dict[str, Callable[[OpenTensor, ThreadPool], MergeBlock]]] = {
    "nearswap": nearswap,
    "ram": ram,
    "ramplus_tl": ramplus_tl,
    "sce": sce,
    "arcee_fusion": arcee_fusion,
}
