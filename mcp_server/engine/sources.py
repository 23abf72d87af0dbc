"""The models of a recipe, opened: headers only, never a weight."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from mcp_server.errors import Incompatible, Malformed, NotFound
from mcp_server.formats import stacks, tensor_names
from mcp_server.formats.absent_base import base_of_adapters
from mcp_server.formats.checkpoint import Checkpoint, open_checkpoint
from mcp_server.formats.identity import text_section
from mcp_server.formats.lora import Adapter, open_adapter
from mcp_server.formats.recipe import ModelRef, Recipe, keeps_ties
from mcp_server.formats.tensors import StoredTensor
from mcp_server.formats.tied import tied
from mcp_server.formats.updates import Change, LowRank, Update


@dataclass(frozen=True, slots=True)
class Input:
    """One source's version of a tensor: stored bytes, plus an adapter's updates if the source is base+adapter."""

    source: str
    stored: StoredTensor
    updates: tuple[Update, ...] = ()

    @property
    def factors(self) -> LowRank | None:
        """The update, if it is one low-rank product on a whole matrix or on every matrix of a stack."""
        return Change(None, self.updates).factors


@dataclass(frozen=True)
class Source:
    """An opened model of the recipe; `ref` is how the recipe names it.

    `renamed` maps the names of the output to this source's own, where its checkpoint spells them differently.
    """

    ref: str
    checkpoint: Checkpoint
    adapter: Adapter | None
    renamed: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    """What a user should know of how it is read."""

    def own_name(self, name: str) -> str:
        return self.renamed.get(name, name)

    def find(self, name: str) -> Input | None:
        """This source's version of a tensor, or of what the model ties it to when it is not stored; None when it has none."""
        own = self.own_name(name)
        stored = self.checkpoint.tensors.get(own)
        if stored is None:
            candidate = self._tied_to(own)
            if candidate is None:
                return None
            own, stored = candidate, self.checkpoint.tensors[candidate]
        change = self.adapter.changes.get(own) if self.adapter else None
        return Input(self.ref, change.replacement or stored, change.updates) if change else Input(self.ref, stored)

    def _tied_to(self, name: str) -> str | None:
        """The stored tensor that stands for an absent one because the model ties them: a head, or a second embedding."""
        if tensor_names.is_head(name) and self.tied and self.embedding:
            return self.embedding
        if tensor_names.is_word_embedding(name) and self.tied:
            return self.embedding
        bias, decoder = name.removesuffix(".decoder.bias"), name.removesuffix(".bias")
        for alias in (f"{bias}.bias", f"{decoder}.decoder.bias"):
            if name.endswith(".bias") and alias != name and alias in self.checkpoint.tensors:
                return alias
        return None

    @cached_property
    def tied(self) -> bool | None:
        return tied(self.checkpoint.config)

    @cached_property
    def embedding(self) -> str | None:
        """The input embedding's name; of several (an encoder's and a decoder's) the shared one."""
        names = [name for name in self.checkpoint.tensors if tensor_names.is_word_embedding(name)]
        shared = [name for name in names if "shared" in name or "tok" in name or "wte" in name or "word" in name]
        return next(iter(shared or names), None)

    @cached_property
    def parts(self) -> frozenset[str]:
        """Every dotted beginning of this source's tensors, as the output spells them: `model.`, `model.layers.`, …"""
        back = {own: name for name, own in self.renamed.items()}
        names = [back.get(name, name).split(".") for name in self.checkpoint.tensors]
        return frozenset(".".join(parts[:n]) + "." for parts in names for n in range(1, len(parts)))

    @cached_property
    def stacks(self) -> dict[str, int]:
        """Every stack of layers and how many layers the weights hold."""
        return {stack: max(held) + 1 for stack, held in self._held.items()}

    @cached_property
    def _held(self) -> dict[str, set[int]]:
        """Stack → the layers that the weights hold, in the order of their first tensors."""
        held: dict[str, set[int]] = {}
        for name in self.checkpoint.tensors:
            if parts := tensor_names.split_layer(name):
                held.setdefault(parts[0], set()).add(parts[1])
        return held

    def layer_count(self, stack: str) -> int:
        """Layers of a stack by the config where it names them, else by the weights. Raises `Incompatible` when one is missing."""
        held = self._held.get(stack, set())
        config = self.checkpoint.config
        part = text_section(config)
        key = tensor_names.layer_key(part)
        count = int(part[key]) if key is not None and stack == tensor_names.main_stack(self.stacks) else max(held) + 1
        if self.checkpoint.headers and (absent := sorted(set(range(count)) - held)):
            raise Incompatible(
                f"{self.ref}: the config says {key}={count}, the weights hold no layer {absent[0]} of {stack}",
                "download or save the checkpoint again",
            )
        return count

    def names_in_layers(self, stack: str) -> dict[int, list[str]]:
        """Layer number → names inside that layer of a stack, in stored order."""
        names: dict[int, list[str]] = {}
        for name in self.checkpoint.tensors:
            if (found := tensor_names.split_layer(name)) and found[0] == stack:
                names.setdefault(found[1], []).append(found[2])
        return names


def open_sources(recipe: Recipe, *, base_may_be_absent: bool = False) -> dict[ModelRef, Source]:
    """Open every model and adapter of the recipe; models that several adapters share are opened once.

    With `base_may_be_absent`, a base that is not here is told from its adapters: names and shapes, no weights.
    """
    opened: dict[str, Checkpoint] = {}
    for ref in recipe.references():
        if ref.base_ref not in opened:
            opened[ref.base_ref] = _open_base(recipe, ref.base_ref) if base_may_be_absent else open_checkpoint(ref.base_ref)
    for checkpoint in opened.values():
        if checkpoint.shadowed_by:
            raise Malformed(
                f"{checkpoint.shadowed_by} lies beside a sharded model in {checkpoint.folder}: loaders differ in what they take",
                "remove one of the two sets of weights",
            )
    checkpoints, said = stacks.alike(opened)
    sources = {}
    for ref in recipe.references():
        base = checkpoints[ref.base_ref]
        merged = keeps_ties(recipe.groups(), ref)
        adapter = open_adapter(ref.adapter_ref, base.tensors, base.config, as_merged=merged) if ref.adapter_ref else None
        if adapter and not base.headers:  # whether a base ties its head cannot be told while it is not here
            adapter = replace(adapter, added={}, untied=False)
        notes = (said[ref.base_ref],) if ref.base_ref in said else ()
        sources[ref] = Source(str(ref), with_adapter(base, adapter) if adapter else base, adapter, notes=notes)
    return sources


def _open_base(recipe: Recipe, base: str) -> Checkpoint:
    try:
        return open_checkpoint(base)
    except NotFound:
        adapters = dict.fromkeys(ref.adapter_ref for ref in recipe.references() if ref.base_ref == base and ref.adapter_ref)
        if not adapters:
            raise
        return Checkpoint(base, Path(base), {}, base_of_adapters(adapters), {})


def with_adapter(base: Checkpoint, adapter: Adapter) -> Checkpoint:
    """The base as the adapter needs it: with a head of its own where it is untied, and a config that says so."""
    if not adapter.added and not adapter.untied and adapter.vocabulary is None:
        return base
    added = {name: base.tensors[start] for name, start in adapter.added.items()}
    return replace(base, tensors=base.tensors | added, config=adapter.config_of(base.config))
