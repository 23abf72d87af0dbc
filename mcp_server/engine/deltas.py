"""One tensor of a merge, block by block: its reference and every source's delta, as float32.

A delta is what a source adds to the reference. For a full model that is a subtraction. For a LoRA source on the same base it is
the update ΔW itself, formed for the rows of the block only: no full ΔW, no rounding through the base's precision, and the base
need not even be read. Without a reference the "delta" is the source's own value.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mcp_server.engine.blocks import Block, split
from mcp_server.engine.codecs import count_nonfinite, subtract
from mcp_server.engine.plan import TensorPlan
from mcp_server.engine.reader import Reader
from mcp_server.engine.sources import Input
from mcp_server.engine.thread_pool import Workspace
from mcp_server.engine.updates import OpenUpdates

Array = np.ndarray[Any, Any]


class OpenTensor:
    """A tensor plan with its adapters' tensors loaded; shared by all threads, which bring their own workspaces."""

    def __init__(self, plan: TensorPlan, reader: Reader, *, around_zero: bool = False) -> None:
        """`around_zero` takes zero for the reference and never reads it: only for low-rank deltas, which do not need it."""
        self.plan, self.reader, self.around_zero = plan, reader, around_zero
        self.blocks = split(plan.shape)
        self.reference = plan.reference
        self.deltas = [entry for i, entry in enumerate(plan.inputs) if i != plan.base]
        self.parameters = [values for i, values in enumerate(plan.per_source) if i != plan.base]
        self._updates: dict[int, OpenUpdates] = {}
        for entry in (*self.deltas, *([self.reference] if self.reference else [])):
            if entry.updates:
                self._updates[id(entry)] = OpenUpdates(entry.updates, entry.stored, reader)
        self._needs = [self._needs_reference(entry) for entry in self.deltas]

    @property
    def count(self) -> int:
        """Elements of the tensor."""
        return self.plan.count

    def _needs_reference(self, entry: Input) -> bool:
        reference = self.reference
        if reference is None:
            return False
        opened = self._updates.get(id(entry))
        return entry.stored != reference.stored or bool(reference.updates) or (opened is not None and not opened.additive)

    def nonfinite_factors(self) -> dict[str, int]:
        """Sources whose adapters hold values that are not finite, and how many."""
        found = {}
        for entry in self.deltas:
            opened = self._updates.get(id(entry))
            if opened is not None and (bad := opened.nonfinite()):
                found[entry.source] = bad
        return found

    def needs_reference(self, index: int) -> bool:
        """Whether a delta cannot be had without reading the reference."""
        return self._needs[index]

    def untouched(self, index: int) -> bool:
        """Whether this source has the reference's very bytes: its delta is zero everywhere."""
        return not self._needs[index] and self.reference is not None and not self.deltas[index].updates

    def load_reference(self, workspace: Workspace, block: Block) -> Array:
        """The reference's block; empty when there is none."""
        if self.reference is None:
            return workspace.take("reference", 0)
        if self.around_zero:
            zeros = workspace.take("reference", block.count)
            zeros[:] = 0
            return zeros
        return self._value(self.reference, workspace, block, workspace.take("reference", block.count))

    def load_delta(self, index: int, workspace: Workspace, block: Block, reference: Array, out: Array) -> int:
        """Source `index`'s delta into `out`; returns how many of it are not finite. `reference` is read only if it is needed."""
        entry = self.deltas[index]
        if self.untouched(index):
            out[:] = 0
            return 0
        if self.reference is not None and self._needs[index] and not entry.updates:
            return self.reader.difference(entry.stored, block, workspace, reference, out)
        if self.reference is not None and not self._needs[index]:
            self._updates[id(entry)].add_into(block, out)
        else:
            self._value(entry, workspace, block, out)
            if self.reference is not None:
                return int(subtract(out, reference))
        return _count_nonfinite(out)

    def load_all(self, workspace: Workspace, block: Block) -> tuple[Array, Array]:
        """(reference, stack of deltas)."""
        return self._load(workspace, block)[:2]

    def load_checked(self, workspace: Workspace, block: Block) -> tuple[Array, Array, dict[str, int]]:
        """`load_all`, and which sources hold values that are not finite, and how many; the reference is blamed first."""
        reference, stack, counts = self._load(workspace, block)
        found = {}
        if self.reference is not None and (number := _count_nonfinite(reference)):
            found[self.reference.source] = number
        for entry, delta, count in zip(self.deltas, stack, counts, strict=True):
            if count:
                sound = np.isfinite(reference) if reference.size else np.ones(delta.size, bool)
                if own := int((~np.isfinite(delta) & sound).sum()):
                    found[entry.source] = own
        return reference, stack, found

    def _load(self, workspace: Workspace, block: Block) -> tuple[Array, Array, list[int]]:
        reference = self.load_reference(workspace, block)
        stack = workspace.stack("deltas", len(self.deltas), block.count)
        return reference, stack, [self.load_delta(i, workspace, block, reference, delta) for i, delta in enumerate(stack)]

    def _value(self, entry: Input, workspace: Workspace, block: Block, out: Array) -> Array:
        self.reader.values(entry.stored, block, workspace, out)
        if entry.updates:
            self._updates[id(entry)].apply(block, out, workspace)
        return out

    def close(self) -> None:
        """Give the inputs' pages back, if the reader was told to."""
        for entry in self.plan.inputs:
            self.reader.done_with(entry.stored)


def _count_nonfinite(values: Array) -> int:
    return int(count_nonfinite(values.view(np.uint32)))
