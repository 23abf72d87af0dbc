"""From a recipe and headers to a list of output tensors: what each is made of, with every parameter resolved.

Everything that can be wrong is found here, before a weight is read. The order of work and the meaning of slices, gradients and
filters are those of mergekit 0.1.5's planner: embeddings take the first slice's sources, tensors after the layers the last one's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mcp_server.core.errors import Incompatible, Malformed, Unsupported, did_you_mean
from mcp_server.engine import layers
from mcp_server.engine.adapters import Adapter, LowRank, open_adapter
from mcp_server.engine.blocks import BLOCK_ELEMENTS
from mcp_server.engine.checkpoint import FLOATS, Checkpoint, StoredTensor, open_checkpoint, require_float
from mcp_server.engine.parameters import resolve, shared_places, source_places
from mcp_server.engine.recipe import ModelRef, OutputSlice, Recipe, SliceSource
from mcp_server.engine.signatures import SIGNATURES, Signature, check_values


@dataclass(frozen=True, slots=True)
class Input:
    """One source's version of a tensor: stored bytes, plus a low-rank update if the source is base+adapter."""

    source: str
    stored: StoredTensor
    low_rank: LowRank | None = None


@dataclass(frozen=True, slots=True)
class TensorPlan:
    """One output tensor. `inputs` keep the recipe's order; `base` indexes the base among them, if the method knows one.

    `reference` is what deltas are measured from: the base, or the model that all adapters share, or None.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    inputs: tuple[Input, ...]
    base: int | None
    reference: Input | None
    shared: dict[str, Any]
    per_source: tuple[dict[str, Any], ...]

    @property
    def count(self) -> int:
        return self.inputs[0].stored.count


@dataclass(frozen=True)
class Source:
    """An opened model of the recipe."""

    checkpoint: Checkpoint
    adapter: Adapter | None

    def find(self, label: str, name: str) -> Input | None:
        """This source's version of a tensor; a missing head is the embedding when the model ties them."""
        for candidate in (name, *(layers.EMBEDDINGS if name in layers.HEADS else ())):
            stored = self.checkpoint.tensors.get(candidate)
            if stored is None:
                continue
            require_float(candidate, stored)
            change = self.adapter.changes.get(candidate) if self.adapter else None
            return Input(label, change.replacement or stored, change.low_rank) if change else Input(label, stored)
        return None


@dataclass(frozen=True)
class MergePlan:
    recipe: Recipe
    sources: dict[ModelRef, Source]
    tensors: tuple[TensorPlan, ...]
    layer_count: int | None
    warnings: tuple[str, ...]

    @property
    def labels(self) -> tuple[str, ...]:
        """The sources whose deltas are reported, in order: every input but the base."""
        found = {entry.source: None for tensor in self.tensors for i, entry in enumerate(tensor.inputs) if i != tensor.base}
        return tuple(found)


def open_sources(recipe: Recipe) -> dict[ModelRef, Source]:
    """Open every model and adapter of the recipe; models that several adapters share are opened once."""
    checkpoints: dict[str, Checkpoint] = {}
    sources = {}
    for ref in recipe.refs:
        if ref.model not in checkpoints:
            checkpoints[ref.model] = open_checkpoint(ref.model)
        base = checkpoints[ref.model]
        sources[ref] = Source(base, open_adapter(ref.adapter, base.tensors) if ref.adapter else None)
    return sources


def make_plan(recipe: Recipe, sources: dict[ModelRef, Source] | None = None) -> MergePlan:
    """Resolve the whole recipe. Raises the first thing that is wrong, by name."""
    signature = SIGNATURES.get(recipe.method)
    if signature is None:
        known = ", ".join(SIGNATURES)
        raise Unsupported(
            f"this engine does not do merge_method {recipe.method!r}.{did_you_mean(recipe.method, SIGNATURES)}",
            f"use --engine mergekit, or one of: {known}",
        )
    opened = sources if sources is not None else open_sources(recipe)
    planner = _Planner(recipe, signature, opened)
    tensors = tuple(planner.tensors())
    if not tensors:
        raise Malformed("the recipe makes no tensor", "check the sources")
    sliced = recipe.slices[0].sources[0].layers is not None
    return MergePlan(recipe, opened, tensors, planner.layer if sliced else None, tuple(planner.warnings()))


class _Planner:
    def __init__(self, recipe: Recipe, signature: Signature, sources: dict[ModelRef, Source]) -> None:
        self.recipe, self.signature, self.sources = recipe, signature, sources
        self.layer = 0
        for part in recipe.slices:
            base = part.base or recipe.base
            signature.check_inputs([str(s.ref) for s in part.sources], str(base) if base else None, recipe.method)

    def tensors(self) -> Iterator[TensorPlan]:
        first, last = self.recipe.slices[0], self.recipe.slices[-1]
        outside = self._names_outside(first) if first is last else self._names_outside(first) + self._names_outside(last)
        outside = list(dict.fromkeys(outside))
        for name in outside:
            if layers.is_before_layers(name):
                yield self._tensor(first, name, [name] * len(first.sources), 0.0)
        for part in self.recipe.slices:
            yield from self._layers(part)
        for name in outside:
            if not layers.is_before_layers(name):
                yield self._tensor(last, name, [name] * len(last.sources), 0.0)

    def _layers(self, part: OutputSlice) -> Iterator[TensorPlan]:
        template = part.sources[0]
        stack, names = self._names_in_layers(template)
        for source in part.sources:
            self._check_layers(source, stack, names, template)
        first, last = template.layers or (0, self._layer_count(template.ref))
        for offset in range(last - first):
            t = offset / (last - first - 1) if last - first > 1 else 1.0
            for rest in names[first + offset]:
                inputs = [f"{stack}.{(source.layers or (0,))[0] + offset}.{rest}" for source in part.sources]
                yield self._tensor(part, f"{stack}.{self.layer}.{rest}", inputs, t)
            self.layer += 1

    def _layer_count(self, ref: ModelRef) -> int:
        checkpoint = self.sources[ref].checkpoint
        numbers = [found[1] for name in checkpoint.tensors if (found := layers.split_layer(name))]
        count = max(numbers, default=-1) + 1
        key = layers.layer_key(checkpoint.config)
        if key is not None and checkpoint.config[key] != count:
            raise Incompatible(
                f"{ref}: the config says {key}={checkpoint.config[key]}, the weights hold {count} layers",
                "use --engine mergekit if the extra layers may be dropped, else correct the checkpoint",
            )
        return count

    def _names_in_layers(self, source: SliceSource) -> tuple[str, dict[int, list[str]]]:
        names: dict[int, list[str]] = {}
        stacks: dict[str, None] = {}
        for name in self.sources[source.ref].checkpoint.tensors:
            if (found := layers.split_layer(name)) and not layers.is_buffer(name):
                stacks[found[0]] = None
                names.setdefault(found[1], []).append(found[2])
        if len(stacks) > 1:
            raise Unsupported(f"{source.ref} has several stacks of layers: {', '.join(stacks)}", "use --engine mergekit")
        return next(iter(stacks), ""), names

    def _check_layers(self, source: SliceSource, stack: str, names: dict[int, list[str]], template: SliceSource) -> None:
        mine_stack, mine = self._names_in_layers(source)
        count = self._layer_count(source.ref)
        first, last = source.layers or (0, count)
        if last > count:
            raise Incompatible(f"layer_range [{first}, {last}] of {source.ref} exceeds its {count} layers", f"end it at {count}")
        start, stop = template.layers or (0, self._layer_count(template.ref))
        if mine_stack != stack or last - first != stop - start:
            raise Incompatible(
                f"{source.ref} has {last - first} layers {mine_stack!r}, {template.ref} has {stop - start} layers {stack!r}",
                "sources must have the same architecture and number of layers; for stacking use passthrough with slices",
            )
        for offset in range(last - first):
            ours, theirs = set(mine.get(first + offset, [])), set(names.get(start + offset, []))
            if ours != theirs:
                odd = sorted(ours ^ theirs)[0]
                has, lacks = (source.ref, template.ref) if odd in ours else (template.ref, source.ref)
                raise Incompatible(f"layer tensor {odd!r} is in {has} but not in {lacks}", "sources must share an architecture")

    def _names_outside(self, part: OutputSlice) -> list[str]:
        """Names outside the layers, in the first source's order. A tied head counts only if some source stores it."""
        every: list[set[str]] = []
        order: dict[str, None] = {}
        for source in part.sources:
            names = self.sources[source.ref].checkpoint.tensors
            outside = [name for name in names if not layers.split_layer(name) and not layers.is_buffer(name)]
            every.append(set(outside))
            order |= dict.fromkeys(outside)
        for source, own in zip(part.sources, every, strict=True):
            lacking = [n for n in order if n not in own and self.sources[source.ref].find(str(source.ref), n) is None]
            if lacking:
                raise Incompatible(
                    f"{lacking[0]!r} is missing in {source.ref}", "sources must share an architecture; check with `inspect`"
                )
        return list(order)

    def _tensor(self, part: OutputSlice, name: str, names: list[str], t: float) -> TensorPlan:
        base_ref = part.base or self.recipe.base if self.signature.base != "ignored" else None
        inputs, per_source = [], []
        for source, stored_name in zip(part.sources, names, strict=True):
            found = self.sources[source.ref].find(str(source.ref), stored_name)
            if found is None:
                raise Incompatible(f"{stored_name!r} is missing in {source.ref}", "sources must share an architecture")
            inputs.append(found)
            places = source_places(self.recipe, part, source.parameters)
            per_source.append(
                {}
                if source.ref == base_ref
                else {
                    key: resolve(key, places, stored_name, t, kind, default, str(source.ref))
                    for key, (kind, default) in self.signature.source.items()
                }
            )
        places = shared_places(self.recipe, part)
        shared = {
            key: resolve(key, places, name, t, kind, default, "the recipe")
            for key, (kind, default) in self.signature.shared.items()
        }
        self._check_shapes(name, inputs)
        self._check_rows(name, inputs[0].stored.shape)
        for key, only in (("filter_wise", False), ("nuslerp_flatten", True)):
            if shared.get(key, only) is not only:
                raise Unsupported(f"{key}: {str(not only).lower()} is not done by this engine", "use --engine mergekit")
        check_values(self.recipe.method, shared, dict(zip((i.source for i in inputs), per_source, strict=True)), name)
        base = next((i for i, source in enumerate(part.sources) if source.ref == base_ref), None)
        return TensorPlan(
            name,
            inputs[0].stored.shape,
            self._dtype(inputs),
            tuple(inputs),
            base,
            _reference(inputs, base, self.signature),
            shared,
            tuple(per_source),
        )

    def _check_shapes(self, name: str, inputs: list[Input]) -> None:
        first = inputs[0]
        for entry in inputs:
            if entry.stored.shape != first.stored.shape:
                raise Incompatible(
                    f"{name} is {list(first.stored.shape)} in {first.source}, {list(entry.stored.shape)} in {entry.source}",
                    "differing vocabularies need a tokenizer block and --engine mergekit"
                    if layers.vocabulary_tensor(name)
                    else "these are different models and cannot be averaged",
                )

    def _check_rows(self, name: str, shape: tuple[int, ...]) -> None:
        """DELLA ranks within rows, so it needs rows; a vector is one."""
        if self.signature.sparsify == "della":
            whole = len(shape) == 2 or (len(shape) == 1 and shape[0] <= BLOCK_ELEMENTS)
            if not whole or shape[-1] < 2:
                raise Unsupported(
                    f"{self.recipe.method} ranks within rows and {name} has the shape {list(shape)}", "use --engine mergekit"
                )

    def _dtype(self, inputs: list[Input]) -> str:
        chosen = self.recipe.out_dtype or self.recipe.dtype
        if chosen is None:
            found = {FLOATS[entry.stored.dtype] for entry in inputs}
            return found.pop() if len(found) == 1 else "float32"
        if chosen not in FLOATS.values():
            raise Unsupported(f"dtype {chosen!r} is not written by this engine", "use bfloat16, float16 or float32")
        return chosen

    def warnings(self) -> Iterator[str]:
        known = {*self.signature.source, *self.signature.shared}
        places = [("the recipe", self.recipe.parameters)]
        for part in self.recipe.slices:
            places += [("a slice", part.parameters), *((str(s.ref), s.parameters) for s in part.sources)]
        for where, settings in places:
            for key in settings:
                if key not in known:
                    yield f"{self.recipe.method} has no parameter {key!r} (given for {where}); it has no effect" + did_you_mean(
                        key, known
                    )


def _reference(inputs: list[Input], base: int | None, signature: Signature) -> Input | None:
    if base is not None:
        return inputs[base]
    stored = {(entry.stored.file, entry.stored.offset) for entry in inputs}
    if signature.base == "ignored" and len(stored) == 1 and any(entry.low_rank for entry in inputs):
        return Input("shared base", inputs[0].stored)
    return None
