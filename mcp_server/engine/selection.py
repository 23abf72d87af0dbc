"""Exactly the k largest |deltas| of a tensor, in O(n) and constant memory, without sorting.

The bit pattern of a float32's magnitude grows with the magnitude, so ranks can be found by counting patterns: one pass counts the
upper 16 bits of every element and finds the half-pattern in which rank k falls, a second counts the lower 16 bits within it. That
gives the k-th magnitude exactly. Elements equal to it are taken in order of their index until there are k: the third pass counts
them per block, to find the position up to which they count. Integer counts do not care in which order threads add them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mcp_server.engine import kernels
from mcp_server.engine.blocks import Block
from mcp_server.engine.deltas import OpenTensor
from mcp_server.engine.team import Team, Workspace

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class Cut:
    """The k largest: every |delta| whose pattern is above `pattern`, and those equal to it at positions below `ties`."""

    pattern: int
    ties: int

    def ties_in(self, block: Block) -> int:
        return min(max(self.ties - block.start, 0), block.count)


def largest(tensor: OpenTensor, wanted: Sequence[tuple[int, int]], team: Team) -> list[Cut]:
    """One cut per (index of the delta, k), with 1 ≤ k ≤ number of elements."""
    high_counts = _count(tensor, team, {index: [0] for index, _ in wanted}, 1 << 15, _count_high)
    found = [_rank(high_counts[index, 0], k) for index, k in wanted]
    halves: dict[int, list[int]] = {}
    for (index, _), (high, _) in zip(wanted, found, strict=True):
        halves.setdefault(index, []).append(high)
    low_counts = _count(tensor, team, halves, 1 << 16, kernels.count_low)
    patterns, missing, search = [], [], {}
    for number, ((index, _), (high, k)) in enumerate(zip(wanted, found, strict=True)):
        counts = low_counts[index, high]
        low, left = _rank(counts, k)
        patterns.append(high << 16 | low)
        missing.append(left)
        if left < counts[low]:
            search[number] = (index, patterns[-1])
    ends = _tie_positions(tensor, team, search, missing)
    return [Cut(pattern, ends.get(number, tensor.plan.count)) for number, pattern in enumerate(patterns)]


def _rank(counts: Array, k: int) -> tuple[int, int]:
    """The bin in which the k-th largest falls, and its rank within that bin."""
    from_top = np.cumsum(counts[::-1])
    place = int(np.searchsorted(from_top, k))
    return len(counts) - 1 - place, k - int(from_top[place - 1] if place else 0)


def _patterns(tensor: OpenTensor, sources: Sequence[int], workspace: Workspace, block: Block) -> dict[int, Array]:
    """The bit patterns of some deltas of a block; the reference is read only if one of them needs it."""
    need = any(tensor.needs_reference(index) for index in sources)
    reference = tensor.load_reference(workspace, block) if need else workspace.take("reference", 0)
    stack = workspace.stack("deltas", len(sources), block.count)
    for row, index in zip(stack, sources, strict=True):
        tensor.load_delta(index, workspace, block, reference, row)
    return dict(zip(sources, stack.view(np.uint32), strict=True))


def _count_high(bits: Array, _: int, counts: Array) -> None:
    kernels.count_high(bits, counts)


def _count(
    tensor: OpenTensor, team: Team, asked: dict[int, list[int]], size: int, kernel: Callable[[Array, int, Array], None]
) -> dict[tuple[int, int], Array]:
    """Histograms over the whole tensor, one per (delta, upper half asked for)."""
    keys = [(index, high) for index, halves in asked.items() for high in dict.fromkeys(halves)]

    def work(workspace: Workspace, block: Block, tables: dict[tuple[int, int], Array]) -> None:
        patterns = _patterns(tensor, list(asked), workspace, block)
        for index, high in keys:
            kernel(patterns[index], high, tables[index, high])

    parts = team.fold(work, tensor.blocks, lambda: {key: np.zeros(size, np.int64) for key in keys})
    return {key: np.sum([part[key] for part in parts], axis=0) for key in keys}


def _tie_positions(tensor: OpenTensor, team: Team, search: dict[int, tuple[int, int]], missing: Sequence[int]) -> dict[int, int]:
    """For each cut that takes only some of the elements equal to its pattern: the position just past the last it takes."""
    if not search:
        return {}
    sources = sorted({index for index, _ in search.values()})

    def work(workspace: Workspace, block: Block) -> list[int]:
        patterns = _patterns(tensor, sources, workspace, block)
        return [int(kernels.count_equal(patterns[index], pattern)) for index, pattern in search.values()]

    per_block = np.cumsum(team.run(work, tensor.blocks), axis=0)
    ends = {}
    for column, (number, (index, pattern)) in enumerate(search.items()):
        place = int(np.searchsorted(per_block[:, column], missing[number]))
        before = int(per_block[place - 1, column]) if place else 0
        block, workspace = tensor.blocks[place], Workspace()
        bits = _patterns(tensor, [index], workspace, block)[index]
        ends[number] = block.start + int(kernels.position_after(bits, pattern, missing[number] - before))
    return ends
