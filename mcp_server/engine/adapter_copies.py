"""Tensors that adapters hold whole although they are the base's: PEFT saves an embedding beside its factors. Imports no numpy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from mcp_server.engine.plan import MergePlan, TensorPlan
from mcp_server.formats.checkpoint import Checkpoint
from mcp_server.formats.tensors import ITEM_BYTES, StoredTensor
from mcp_server.system.guard import open_read

_CHUNK: Final = 1 << 22


def base_tensors(plan: MergePlan, base: Checkpoint) -> dict[str, StoredTensor]:
    """The base's tensors by name, also by the names of a tied one that an adapter changes by itself."""
    adapters = [source.adapter for source in plan.sources.values() if source.adapter]
    added = {name: base.tensors[start] for adapter in adapters for name, start in adapter.added.items()}
    return added | dict(base.tensors)


def without_copies(plan: MergePlan, base: Mapping[str, StoredTensor]) -> MergePlan:
    """The plan with the base's own tensor for what adapters hold of it, byte for byte."""
    held = {
        name
        for source in plan.sources.values()
        for name, change in (source.adapter.changes.items() if source.adapter else ())
        if change.replacement and name in base
    }
    return replace(plan, tensors=tuple(_own(t, base[t.name]) if t.name in held else t for t in plan.tensors))


def _own(tensor: TensorPlan, own: StoredTensor) -> TensorPlan:
    copies = {entry.stored for entry in tensor.inputs if entry.stored != own and _same_bytes(entry.stored, own)}
    inputs = tuple(replace(entry, stored=own) if entry.stored in copies else entry for entry in tensor.inputs)
    return replace(tensor, inputs=inputs)


def _same_bytes(one: StoredTensor, other: StoredTensor) -> bool:
    if (one.dtype, one.shape) != (other.dtype, other.shape) or one.packed or other.packed:
        return False
    left = one.count * ITEM_BYTES[one.dtype]
    with open_read(one.file) as first, open_read(other.file) as second:
        first.seek(one.offset)
        second.seek(other.offset)
        while left:
            piece = first.read(min(left, _CHUNK))
            if not piece or piece != second.read(len(piece)):
                return False
            left -= len(piece)
    return True
