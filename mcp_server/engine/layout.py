"""Where every output tensor will lie: shards, their headers and offsets, known before the first byte is computed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from mcp_server.engine.plan import TensorPlan
from mcp_server.formats.tensors import ITEM_BYTES, STORED

PAGE: Final = 4096


@dataclass(frozen=True, slots=True)
class Place:
    """A tensor's bytes: shard number and byte offset in that file."""

    shard: int
    offset: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Shard:
    file: str
    header: bytes
    file_bytes: int


@dataclass(frozen=True)
class Layout:
    shards: tuple[Shard, ...]
    places: tuple[Place, ...]
    weight_bytes: int
    file_bytes: int

    def index(self, tensors: Sequence[TensorPlan]) -> dict[str, Any] | None:
        """The content of model.safetensors.index.json, or None for a single file."""
        if len(self.shards) == 1:
            return None
        table = {tensor.name: self.shards[place.shard].file for tensor, place in zip(tensors, self.places, strict=True)}
        return {"metadata": {"total_size": self.weight_bytes}, "weight_map": dict(sorted(table.items()))}


def plan_layout(tensors: Sequence[TensorPlan], shard_bytes: int) -> Layout:
    """Fill shards in order up to `shard_bytes` of weights each (a tensor larger than that gets a shard of its own)."""
    groups: list[list[int]] = [[]]
    held = 0
    sizes = [tensor.count * ITEM_BYTES[STORED[tensor.dtype]] for tensor in tensors]
    for number, size in enumerate(sizes):
        stays = tensors[number].how == "scales"  # with the codes before them, which are written at the same time
        if groups[-1] and held + size > shard_bytes and not stays:
            groups.append([])
            held = 0
        groups[-1].append(number)
        held += size
    places: list[Place | None] = [None] * len(tensors)
    shards = []
    for shard, group in enumerate(groups):
        # Whole pages first, so that they can be written past the page cache; then wider types first, which aligns the rest.
        group.sort(key=lambda number: (sizes[number] % PAGE != 0, -ITEM_BYTES[STORED[tensors[number].dtype]]))
        entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        position = 0
        for number in group:
            tensor = tensors[number]
            end = position + sizes[number]
            entries[tensor.name] = {"dtype": STORED[tensor.dtype], "shape": tensor.shape, "data_offsets": [position, end]}
            places[number] = Place(shard, position, sizes[number])
            position = end
        text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-(8 + len(text)) % PAGE)
        name = "model.safetensors" if len(groups) == 1 else f"model-{shard + 1:05d}-of-{len(groups):05d}.safetensors"
        header = len(text).to_bytes(8, "little") + text
        shards.append(Shard(name, header, len(header) + position))
    final = [Place(p.shard, p.offset + len(shards[p.shard].header), p.nbytes) for p in places if p is not None]
    return Layout(tuple(shards), tuple(final), sum(sizes), sum(shard.file_bytes for shard in shards))
