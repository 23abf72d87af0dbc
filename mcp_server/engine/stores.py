"""How a merged tensor is stored: its float32 values, block by block, as the bytes of a dtype, or as FP8 codes with scales.

A store writes a block's bytes, and says what they stand for and what the reference would be in the same precision: the merge
counts from these how much of each source arrived.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from mcp_server.engine.blocks import Block
from mcp_server.engine.codecs import count_stored_nonfinite, decode, encode
from mcp_server.engine.deltas import OpenTensor
from mcp_server.engine.thread_pool import Workspace
from mcp_server.formats.tensors import ITEM_BYTES, STORED

Array = np.ndarray[Any, Any]


class Store(Protocol):
    """One tensor's. `values`, `reference` and what is returned are float32, a block each; buffers belong to the workspace."""

    item_bytes: int

    def measure(self, workspace: Workspace, block: Block, values: Array) -> None:
        """See a block before any is stored; called only where `measures`."""

    @property
    def measures(self) -> bool:
        """Whether every block has to be seen before one can be stored."""

    def store(self, workspace: Workspace, block: Block, values: Array, raw: Array) -> int:
        """The bytes of a block into `raw`; returns how many of its values are not finite."""

    def stored(self, workspace: Workspace, block: Block, values: Array, raw: Array) -> Array:
        """What the bytes stand for."""

    def on_grid(self, workspace: Workspace, block: Block, reference: Array) -> Array:
        """The reference, in the precision in which the block is stored."""


class Plain:
    """The bytes of one floating-point dtype."""

    measures = False

    def __init__(self, tensor: OpenTensor) -> None:
        self.dtype = STORED[tensor.plan.dtype]
        self.item_bytes = ITEM_BYTES[self.dtype]
        known = tensor.reference
        self._same = known is not None and known.stored.dtype == self.dtype and not known.stored.packed and not known.updates

    def measure(self, workspace: Workspace, block: Block, values: Array) -> None:
        """Nothing need be known."""

    def store(self, workspace: Workspace, block: Block, values: Array, raw: Array) -> int:  # noqa: ARG002
        encode(values, self.dtype, raw)
        return count_stored_nonfinite(raw, self.dtype)

    def stored(self, workspace: Workspace, block: Block, values: Array, raw: Array) -> Array:
        if self.dtype == "F32":
            return values
        rounded = workspace.take("rounded", block.count)
        decode(raw, self.dtype, rounded)
        return rounded

    def on_grid(self, workspace: Workspace, block: Block, reference: Array) -> Array:
        if self._same or self.dtype == "F32":
            return reference
        grid, raw = workspace.take("grid", block.count), workspace.take("raw", block.count * self.item_bytes, np.uint8)
        encode(reference, self.dtype, raw)
        decode(raw, self.dtype, grid)
        return grid
