"""Exactly the k largest |deltas| of a tensor, in O(n) and bounded memory, without sorting.

The bit pattern of a float32's magnitude grows with the magnitude, so ranks can be found by counting patterns.

By counting: one pass counts the upper 16 bits of every element and finds the half-pattern in which rank k falls, a second counts
the lower 16 bits within it, which gives the k-th magnitude exactly. Elements equal to it are taken in order of their index until
there are k; a third pass counts them per block, to find the position up to which they count.

By guessing: a sample of a few rows per block shows roughly where rank k lies. One pass then counts what is above that window and
keeps the patterns inside it, a few per cent; if the rank is in the window, as it nearly always is, they decide everything.
If not, or if the window is too full (many equal magnitudes), counting does it. Both ways give the same cut.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol

import numpy as np

from mcp_server.engine import counting
from mcp_server.engine.blocks import MOST_COLLECTED, MOST_COLLECTED_SHARE, Block
from mcp_server.engine.thread_pool import ThreadPool, Workspace

Array = np.ndarray[Any, Any]
Wanted = Sequence[tuple[int, int]]
"""(index of the delta, k) with 1 ≤ k ≤ number of elements."""

GUESS_FROM_ELEMENTS: Final = 1 << 20
SAMPLE_ONE_IN: Final = 32
MARGIN: Final = 0.004
"""How far, as a share of all elements, the sampled rank may be off on either side."""


class Ranked(Protocol):
    """What is selected from: the deltas of a tensor (`OpenTensor`), or anything else that has a number for each element."""

    blocks: list[Block]

    @property
    def count(self) -> int: ...

    def needs_reference(self, index: int, /) -> bool: ...

    def load_reference(self, workspace: Workspace, block: Block, /) -> Array: ...

    def load_delta(self, index: int, workspace: Workspace, block: Block, reference: Array, out: Array, /) -> int: ...


@dataclass(frozen=True, slots=True)
class Cut:
    """The k largest: every |delta| whose pattern is above `pattern`, and those equal to it at positions below `ties`."""

    pattern: int
    ties: int

    def ties_in(self, block: Block) -> int:
        return min(max(self.ties - block.start, 0), block.count)


def largest(tensor: Ranked, wanted: Wanted, pool: ThreadPool) -> list[Cut]:
    """One cut per wanted (delta, k)."""
    if tensor.count >= GUESS_FROM_ELEMENTS and (cuts := sampled_select(tensor, wanted, pool)) is not None:
        return cuts
    return radix_select(tensor, wanted, pool)


def sampled_select(tensor: Ranked, wanted: Wanted, pool: ThreadPool) -> list[Cut] | None:
    """The cuts, or None when the guess was wrong or the windows are too full."""
    sample = [replace(b, rows=max(1, b.rows // SAMPLE_ONE_IN)) for b in tensor.blocks]
    sample = [replace(b, count=b.rows * b.columns) for b in sample]
    counts = _count(tensor, pool, {index: [0] for index, _ in wanted}, 1 << 15, _count_high, sample)
    size = sum(b.count for b in sample)
    windows, expected = [], 0.0
    for index, k in wanted:
        from_top = np.cumsum(counts[index, 0][::-1]) / size
        share = k / tensor.count
        first = int(np.searchsorted(from_top, share - MARGIN))
        last = min(int(np.searchsorted(from_top, share + MARGIN)), (1 << 15) - 1)
        windows.append((index, ((1 << 15) - 1 - last) << 16, ((1 << 15) - first) << 16))
        expected += float(from_top[last] - (from_top[first - 1] if first else 0)) * tensor.count
    if expected > min(MOST_COLLECTED, tensor.count * len(wanted) * MOST_COLLECTED_SHARE):
        return None

    def work(workspace: Workspace, block: Block) -> list[tuple[Array, int]]:
        patterns = _patterns(tensor, sorted({index for index, _ in wanted}), workspace, block)
        found = workspace.take("found", block.count + 8, np.uint32)
        results = []
        for index, low, high in windows:
            number, above = counting.collect(patterns[index], low, high, found)
            results.append((found[:number].copy(), above))
        return results

    results = pool.run(work, tensor.blocks)
    cuts = []
    for place, (index, k) in enumerate(wanted):
        parts = [result[place][0] for result in results]
        left = k - sum(result[place][1] for result in results)
        if not 0 < left <= sum(part.size for part in parts):
            return None
        high_counts, low_counts = np.zeros(1 << 15, np.int64), np.zeros(1 << 16, np.int64)
        for part in parts:
            counting.count_high(part, high_counts)
        high, left = _rank(high_counts, left)
        for part in parts:
            counting.count_low(part, high, low_counts)
        low, left = _rank(low_counts, left)
        pattern = high << 16 | low
        equal = np.cumsum([counting.count_equal(part, pattern) for part in parts])
        cuts.append(Cut(pattern, _tie_position(tensor, index, pattern, equal, left)))
    return cuts


def radix_select(tensor: Ranked, wanted: Wanted, pool: ThreadPool) -> list[Cut]:
    """The cuts, whatever the values are."""
    high_counts = _count(tensor, pool, {index: [0] for index, _ in wanted}, 1 << 15, _count_high, tensor.blocks)
    found = [_rank(high_counts[index, 0], k) for index, k in wanted]
    halves: dict[int, list[int]] = {}
    for (index, _), (high, _) in zip(wanted, found, strict=True):
        halves.setdefault(index, []).append(high)
    low_counts = _count(tensor, pool, halves, 1 << 16, counting.count_low, tensor.blocks)
    cuts, search = [], {}
    for number, ((index, _), (high, k)) in enumerate(zip(wanted, found, strict=True)):
        counts = low_counts[index, high]
        low, left = _rank(counts, k)
        cuts.append(Cut(high << 16 | low, tensor.count))
        if left < counts[low]:
            search[number] = (index, cuts[-1].pattern, left)
    if search:
        sources = sorted({index for index, _, _ in search.values()})

        def work(workspace: Workspace, block: Block) -> list[int]:
            patterns = _patterns(tensor, sources, workspace, block)
            return [int(counting.count_equal(patterns[index], pattern)) for index, pattern, _ in search.values()]

        equal = np.cumsum(pool.run(work, tensor.blocks), axis=0)
        for column, (number, (index, pattern, left)) in enumerate(search.items()):
            cuts[number] = Cut(pattern, _tie_position(tensor, index, pattern, equal[:, column], left))
    return cuts


def _rank(counts: Array, k: int) -> tuple[int, int]:
    """The bin in which the k-th largest falls, and its rank within that bin."""
    from_top = np.cumsum(counts[::-1])
    place = int(np.searchsorted(from_top, k))
    return len(counts) - 1 - place, k - int(from_top[place - 1] if place else 0)


def _patterns(tensor: Ranked, sources: Sequence[int], workspace: Workspace, block: Block) -> dict[int, Array]:
    """The bit patterns of some deltas of a block; the reference is read only if one of them needs it."""
    need = any(tensor.needs_reference(index) for index in sources)
    reference = tensor.load_reference(workspace, block) if need else workspace.take("reference", 0)
    stack = workspace.stack("deltas", len(sources), block.count)
    for row, index in zip(stack, sources, strict=True):
        tensor.load_delta(index, workspace, block, reference, row)
    return dict(zip(sources, stack.view(np.uint32), strict=True))


def _count_high(bits: Array, _: int, counts: Array) -> None:
    counting.count_high(bits, counts)


def _count(
    tensor: Ranked,
    pool: ThreadPool,
    asked: dict[int, list[int]],
    size: int,
    kernel: Callable[[Array, int, Array], None],
    blocks: Sequence[Block],
) -> dict[tuple[int, int], Array]:
    """Histograms over some blocks, one per (delta, upper half asked for)."""
    keys = [(index, high) for index, halves in asked.items() for high in dict.fromkeys(halves)]

    def work(workspace: Workspace, block: Block, tables: dict[tuple[int, int], Array]) -> None:
        patterns = _patterns(tensor, list(asked), workspace, block)
        for index, high in keys:
            kernel(patterns[index], high, tables[index, high])

    parts = pool.fold(work, blocks, lambda: {key: np.zeros(size, np.int64) for key in keys})
    return {key: np.sum([part[key] for part in parts], axis=0) for key in keys}


def _tie_position(tensor: Ranked, index: int, pattern: int, equal_up_to: Array, left: int) -> int:
    """The position just past the `left`-th element with this pattern, given how many there are up to each block's end."""
    place = int(np.searchsorted(equal_up_to, left))
    block, before = tensor.blocks[place], int(equal_up_to[place - 1]) if place else 0
    bits = _patterns(tensor, [index], Workspace(), block)[index]
    return block.start + int(counting.position_after(bits, pattern, left - before))
