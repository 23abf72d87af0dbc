"""Fixed blocks: how a tensor is cut, by its shape alone.

Sums are taken per block and added in block order, matrix products are made per block, so a result does not depend on how many
threads shared the work. Blocks are whole rows of the last dimension, so that a block of a low-rank update is a matrix product.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

BLOCK_ELEMENTS: Final = 1 << 18
"""Elements per block: a float32 block is 1 MiB. Part of the arithmetic: changing it can change last bits of float64 sums."""

CHUNK: Final = 1024
"""Elements that the compiled loops take at a time: what several of them need again is still in the first-level cache."""

SUMS_AT_ONCE: Final = 16
"""Blocks whose sums over columns are held until they are added in order, so that no result depends on the threads."""

MOST_COLLECTED: Final = 24_000_000
MOST_COLLECTED_SHARE: Final = 0.04
"""What a selection may keep in memory, in elements: all cuts of a tensor together, and as a share of the tensor for each."""


@dataclass(frozen=True, slots=True)
class Block:
    """Elements `start` … `start + count` of the flattened tensor: rows `row` … `row + rows` of `columns` each."""

    index: int
    start: int
    count: int
    row: int
    rows: int
    columns: int


def split(shape: tuple[int, ...]) -> list[Block]:
    """The blocks of a tensor. One dimension is cut anywhere; more are cut between rows of the last dimension."""
    rows, columns = (math.prod(shape[:-1]), shape[-1]) if len(shape) > 1 else (math.prod(shape), 1)
    if rows == 0 or columns == 0:
        return []
    step = 1 << max(0, (BLOCK_ELEMENTS // columns).bit_length() - 1)  # a power of two: blocks then start at whole disk pages
    return [
        Block(i, row * columns, min(step, rows - row) * columns, row, min(step, rows - row), columns)
        for i, row in enumerate(range(0, rows, step))
    ]
