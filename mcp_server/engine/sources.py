"""The models of a recipe, opened: headers only, never a weight."""

from __future__ import annotations

from dataclasses import dataclass

from mcp_server.engine.recipe import Recipe
from mcp_server.errors import Incompatible, Unsupported
from mcp_server.formats import tensor_names as layers
from mcp_server.formats.checkpoint import Checkpoint, StoredTensor, open_checkpoint, require_float
from mcp_server.formats.lora import Adapter, LowRank, open_adapter
from mcp_server.formats.recipe import ModelRef


@dataclass(frozen=True, slots=True)
class Input:
    """One source's version of a tensor: stored bytes, plus a low-rank update if the source is base+adapter."""

    source: str
    stored: StoredTensor
    low_rank: LowRank | None = None


@dataclass(frozen=True)
class Source:
    """An opened model of the recipe; `ref` is how the recipe names it."""

    ref: str
    checkpoint: Checkpoint
    adapter: Adapter | None

    def find(self, name: str) -> Input | None:
        """This source's version of a tensor; a missing head is the embedding when the model ties them."""
        for candidate in (name, *(layers.EMBEDDINGS if name in layers.HEADS else ())):
            stored = self.checkpoint.tensors.get(candidate)
            if stored is None:
                continue
            require_float(candidate, stored)
            change = self.adapter.changes.get(candidate) if self.adapter else None
            return Input(self.ref, change.replacement or stored, change.low_rank) if change else Input(self.ref, stored)
        return None

    def layer_count(self) -> int:
        """Layers that the weights hold. Raises `Incompatible` when the config gives another number."""
        numbers = [found[1] for name in self.checkpoint.tensors if (found := layers.split_layer(name))]
        count = max(numbers, default=-1) + 1
        key = layers.layer_key(self.checkpoint.config)
        if key is not None and self.checkpoint.config[key] != count:
            raise Incompatible(
                f"{self.ref}: the config says {key}={self.checkpoint.config[key]}, the weights hold {count} layers",
                "use --engine mergekit if the extra layers may be dropped, else correct the checkpoint",
            )
        return count

    def names_in_layers(self) -> tuple[str, dict[int, list[str]]]:
        """The name of the stack of layers, and layer number → names inside that layer, in stored order."""
        names: dict[int, list[str]] = {}
        stacks: dict[str, None] = {}
        for name in self.checkpoint.tensors:
            if (found := layers.split_layer(name)) and not layers.is_buffer(name):
                stacks[found[0]] = None
                names.setdefault(found[1], []).append(found[2])
        if len(stacks) > 1:
            raise Unsupported(f"{self.ref} has several stacks of layers: {', '.join(stacks)}", "use --engine mergekit")
        return next(iter(stacks), ""), names

    def names_outside_layers(self) -> list[str]:
        return [name for name in self.checkpoint.tensors if not layers.split_layer(name) and not layers.is_buffer(name)]


def open_sources(recipe: Recipe) -> dict[ModelRef, Source]:
    """Open every model and adapter of the recipe; models that several adapters share are opened once."""
    checkpoints: dict[str, Checkpoint] = {}
    sources = {}
    for ref in recipe.refs:
        if ref.base_ref not in checkpoints:
            checkpoints[ref.base_ref] = open_checkpoint(ref.base_ref)
        base = checkpoints[ref.base_ref]
        sources[ref] = Source(str(ref), base, open_adapter(ref.adapter_ref, base.tensors) if ref.adapter_ref else None)
    return sources
