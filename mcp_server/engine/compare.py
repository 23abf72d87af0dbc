"""Cosine, sign agreement and norm ratio of task vectors: facts for a plan, from one streaming pass. None can clear a merge.

For every pair of sources and for every tensor, layer and the whole: the cosine of their deltas from the base, the share of
elements that both change in opposite directions, the ratio of their norms, and how far their largest changes fall on the same
elements. For every source: the norm of its delta, also relative to the base's norm over the tensors that any source touches, and
the share of parameters that it changes. Adapters are compared through their factors, row block by row block; tensors that no
source touches are not read.

The largest `TOP_SHARE` of each delta is told from a magnitude that a sample of its rows gives, so each input is read once.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any, Final

import numpy as np

from mcp_server.engine import kernels
from mcp_server.engine.blocks import Block
from mcp_server.engine.comparable import comparable
from mcp_server.engine.deltas import OpenTensor
from mcp_server.engine.plan import TensorPlan
from mcp_server.engine.reader import Reader
from mcp_server.engine.thread_pool import ThreadPool, Workspace
from mcp_server.formats.lineage import short_names
from mcp_server.formats.tensor_names import split_layer
from mcp_server.schemas.comparison import Comparison, ComparisonDetails, Figures, LayerRelation, PairRelation, SourceChange

Array = np.ndarray[Any, Any]
Report = Callable[[str, float, float, str], None]

TOP_SHARE: Final = 0.2
SAMPLE_ONE_IN: Final = 32
STANDOUTS: Final = 10
"""Pairs, and layers, that the summary shows; the file has all."""


@dataclass
class Sums:
    """What is added up: over blocks, tensors, layers. One row per source, one per pair of sources."""

    elements: int
    base: float
    single: Array
    """Σδ², changed, in the top share: by source."""
    pair: Array
    """Σδδ', both changed, opposite, both in the top share: by pair."""

    @classmethod
    def zero(cls, sources: int) -> Sums:
        return cls(0, 0.0, np.zeros((sources, 3)), np.zeros((sources * (sources - 1) // 2, 4)))

    def add(self, other: Sums) -> None:
        self.elements += other.elements
        self.base += other.base
        self.single += other.single
        self.pair += other.pair


def compare(base: str, refs: list[str], path: Path, report: Report, *, sample: bool = False, threads: int = 1) -> Comparison:
    """Compare `refs` (full models, base+adapter, or adapters of `base`). Everything goes to `path`, a summary is returned."""
    models, plan = comparable(base, refs)
    names = short_names(refs)
    reader, pool = Reader(), ThreadPool(threads)
    per_tensor: dict[str, Sums] = {}
    try:
        compared = [tensor for tensor in plan.tensors if tensor.how == "merged"]
        for number, tensor in enumerate(compared):
            per_tensor[tensor.name] = _tensor(tensor, reader, pool, sample)
            report("compare", number + 1, len(compared), "tensors")
    finally:
        pool.close()
        reader.close()
    whole, layers = Sums.zero(len(refs)), dict[str, Sums]()
    for name, sums in per_tensor.items():
        whole.add(sums)
        found = split_layer(name)
        layers.setdefault(str(found[1]) if found else name, Sums.zero(len(refs))).add(sums)
    details = ComparisonDetails(
        base=base,
        sources=dict(zip(names, models, strict=True)),
        sample=sample,
        overall=_figures(whole, names),
        layers={name: _figures(sums, names) for name, sums in layers.items()},
        tensors={name: _figures(sums, names) for name, sums in per_tensor.items()},
    )
    path.write_text(details.model_dump_json(indent=1), encoding="utf-8")
    return Comparison(
        sources=details.overall.sources,
        pairs=_closest(details.overall.pairs),
        layers=_standouts(details),
        sample=sample,
        tensors=len(per_tensor),
        path=str(path),
    )


def _tensor(plan: TensorPlan, reader: Reader, pool: ThreadPool, sample: bool) -> Sums:
    tensor, sources = OpenTensor(plan, reader), len(plan.inputs) - 1
    sums = Sums.zero(sources)
    need = [tensor.needs_reference(i) for i in range(sources)]
    if not any(need) and not any(entry.updates for entry in tensor.deltas):
        sums.elements = plan.count
        return sums
    rows = [replace(b, rows=max(1, b.rows // SAMPLE_ONE_IN)) for b in tensor.blocks]
    sampled = [replace(b, count=b.rows * b.columns) for b in rows]
    blocks = sampled if sample else tensor.blocks

    def magnitudes(workspace: Workspace, block: Block) -> Array:
        return np.abs(tensor.load_all(workspace, block)[1])

    every = np.concatenate(pool.run(magnitudes, _thin(sampled)), axis=1)
    place = max(0, every.shape[1] - max(1, int(TOP_SHARE * every.shape[1])))
    tiny = np.finfo(np.float32).tiny
    thresholds = [max(np.partition(row, place)[place], tiny) for row in every]

    def work(workspace: Workspace, block: Block) -> Sums:
        reference, deltas = tensor.load_all(workspace, block)
        single = [kernels.measure(delta, t) for delta, t in zip(deltas, thresholds, strict=True)]
        pair = [kernels.relate(deltas[i], deltas[j], thresholds[i], thresholds[j]) for i, j in combinations(range(sources), 2)]
        return Sums(block.count, kernels.dot(reference, reference), np.array(single), np.array(pair).reshape(-1, 4))

    for part in pool.run(work, blocks):
        sums.add(part)
    return sums


def _thin(blocks: list[Block]) -> list[Block]:
    """At most a few million elements for the thresholds; indices follow the list."""
    step = max(1, sum(b.count for b in blocks) // 2_000_000)
    return [replace(block, index=i) for i, block in enumerate(blocks[::step])]


def _figures(sums: Sums, names: list[str]) -> Figures:
    norms = np.sqrt(sums.single[:, 0])
    sources = [
        SourceChange(
            name=name,
            norm=float(norms[i]),
            relative_norm=_ratio(float(norms[i]), math.sqrt(sums.base)),
            changed=_ratio(float(sums.single[i, 1]), sums.elements),
        )
        for i, name in enumerate(names)
    ]
    pairs = [
        PairRelation(
            between=(names[i], names[j]),
            cosine=_ratio(float(product), float(norms[i] * norms[j])),
            sign_disagreement=_ratio(float(opposite), float(both)),
            norm_ratio=_ratio(float(norms[i]), float(norms[j])),
            top_overlap=_ratio(float(top), float(min(sums.single[i, 2], sums.single[j, 2]))),
        )
        for (i, j), (product, both, opposite, top) in zip(combinations(range(len(names)), 2), sums.pair, strict=True)
    ]
    return Figures(sources=sources, pairs=pairs)


def _closest(pairs: list[PairRelation]) -> list[PairRelation]:
    """The pairs that are least independent of each other, in their original order."""
    most = sorted(pairs, key=lambda pair: -abs(pair.cosine or 0.0))[:STANDOUTS]
    return [pair for pair in pairs if pair in most]


def _ratio(part: float, whole: float) -> float | None:
    return round(part / whole, 6) if whole else None


def _standouts(details: ComparisonDetails) -> list[LayerRelation]:
    """The layers that differ most from the whole: in cosine and sign disagreement, and in the norm ratio by a factor of four."""

    def distance(pair: PairRelation, whole: PairRelation) -> float:
        parts = [
            abs(here - there)
            for here, there in ((pair.cosine, whole.cosine), (pair.sign_disagreement, whole.sign_disagreement))
            if here is not None and there is not None
        ]
        if pair.norm_ratio and whole.norm_ratio:
            parts.append(abs(math.log(pair.norm_ratio / whole.norm_ratio, 4)))
        return max(parts, default=0.0)

    rows = [
        (distance(pair, whole), LayerRelation(layer=name, **pair.model_dump()))
        for name, figures in details.layers.items()
        for pair, whole in zip(figures.pairs, details.overall.pairs, strict=True)
        if pair.cosine is not None
    ]
    return [row for _, row in sorted(rows, key=lambda entry: -entry[0])[:STANDOUTS]]
