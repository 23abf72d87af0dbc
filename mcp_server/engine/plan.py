"""From a recipe and headers to a list of output tensors: what each is made of, with every parameter resolved.

Everything that can be wrong is found here, before a weight is read. The order of work and the meaning of slices, gradients and
filters are those of mergekit 0.1.5's planner: embeddings take the first slice's sources, tensors after the layers the last one's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mcp_server.engine.blocks import BLOCK_ELEMENTS
from mcp_server.engine.parameters import resolve
from mcp_server.engine.recipe import Recipe
from mcp_server.engine.signatures import SIGNATURES, Signature, check_values
from mcp_server.engine.sources import Input, Source, open_sources
from mcp_server.errors import Incompatible, Malformed, Unsupported, did_you_mean
from mcp_server.formats import tensor_names as layers
from mcp_server.formats.checkpoint import FLOATS
from mcp_server.formats.recipe import Group, ModelRef
from mcp_server.formats.recipe import Source as Listed


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
    sliced = recipe.groups[0].sources[0].layer_range is not None
    return MergePlan(recipe, opened, tensors, planner.layer if sliced else None, tuple(planner.warnings()))


class _Planner:
    def __init__(self, recipe: Recipe, signature: Signature, sources: dict[ModelRef, Source]) -> None:
        self.recipe, self.signature, self.sources = recipe, signature, sources
        self.layer = 0
        for group in recipe.groups:
            refs = [str(listed.model) for listed in group.sources]
            signature.check_inputs(refs, str(group.base) if group.base else None, recipe.method)

    def tensors(self) -> Iterator[TensorPlan]:
        first, last = self.recipe.groups[0], self.recipe.groups[-1]
        outside = self._names_outside(first) if first is last else self._names_outside(first) + self._names_outside(last)
        outside = list(dict.fromkeys(outside))
        for name in outside:
            if layers.is_before_layers(name):
                yield self._tensor(first, name, [name] * len(first.sources), 0.0)
        for group in self.recipe.groups:
            yield from self._layers(group)
        for name in outside:
            if not layers.is_before_layers(name):
                yield self._tensor(last, name, [name] * len(last.sources), 0.0)

    def _layers(self, group: Group) -> Iterator[TensorPlan]:
        template = group.sources[0]
        stack, names = self.sources[template.model].names_in_layers()
        for listed in group.sources:
            self._check_layers(listed, stack, names, template)
        first, end = self._range(template)
        for offset in range(end - first):
            t = offset / (end - first - 1) if end - first > 1 else 1.0
            for rest in names[first + offset]:
                inputs = [f"{stack}.{(listed.layer_range or (0,))[0] + offset}.{rest}" for listed in group.sources]
                yield self._tensor(group, f"{stack}.{self.layer}.{rest}", inputs, t)
            self.layer += 1

    def _range(self, listed: Listed) -> tuple[int, int]:
        """Its first layer, and one past its last."""
        return listed.layer_range or (0, self.sources[listed.model].layer_count())

    def _check_layers(self, listed: Listed, stack: str, names: dict[int, list[str]], template: Listed) -> None:
        mine_stack, mine = self.sources[listed.model].names_in_layers()
        count = self.sources[listed.model].layer_count()
        first, end = self._range(listed)
        if end > count:
            raise Incompatible(f"layer_range [{first}, {end}] of {listed.model} exceeds its {count} layers", f"end it at {count}")
        start, stop = self._range(template)
        if mine_stack != stack or end - first != stop - start:
            raise Incompatible(
                f"{listed.model} has {end - first} layers {mine_stack!r}, {template.model} has {stop - start} layers {stack!r}",
                "sources must have the same architecture and number of layers; for stacking use passthrough with slices",
            )
        for offset in range(end - first):
            ours, theirs = set(mine.get(first + offset, [])), set(names.get(start + offset, []))
            if ours != theirs:
                odd = sorted(ours ^ theirs)[0]
                has, lacks = (listed.model, template.model) if odd in ours else (template.model, listed.model)
                raise Incompatible(f"layer tensor {odd!r} is in {has} but not in {lacks}", "sources must share an architecture")

    def _names_outside(self, group: Group) -> list[str]:
        """Names outside the layers, in the first source's order. A tied head counts only if some source stores it."""
        opened = [self.sources[listed.model] for listed in group.sources]
        order = dict.fromkeys(name for source in opened for name in source.names_outside_layers())
        for source in opened:
            lacking = [name for name in order if name not in source.checkpoint.tensors and source.find(name) is None]
            if lacking:
                raise Incompatible(
                    f"{lacking[0]!r} is missing in {source.ref}", "sources must share an architecture; check with `inspect`"
                )
        return list(order)

    def _tensor(self, group: Group, name: str, names: list[str], t: float) -> TensorPlan:
        base_ref = group.base if self.signature.base != "ignored" else None
        inputs, per_source = [], []
        for listed, stored_name in zip(group.sources, names, strict=True):
            found = self.sources[listed.model].find(stored_name)
            if found is None:
                raise Incompatible(f"{stored_name!r} is missing in {listed.model}", "sources must share an architecture")
            inputs.append(found)
            per_source.append(
                {}
                if listed.model == base_ref
                else {
                    key: resolve(key, group.settings(key, listed), stored_name, t, kind, default, found.source)
                    for key, (kind, default) in self.signature.source.items()
                }
            )
        shared = {
            key: resolve(key, group.settings(key), name, t, kind, default, "the recipe")
            for key, (kind, default) in self.signature.shared.items()
        }
        self._check_shapes(name, inputs)
        self._check_rows(name, inputs[0].stored.shape)
        for key, only in (("filter_wise", False), ("nuslerp_flatten", True)):
            if shared.get(key, only) is not only:
                raise Unsupported(f"{key}: {str(not only).lower()} is not done by this engine", "use --engine mergekit")
        check_values(self.recipe.method, shared, dict(zip((i.source for i in inputs), per_source, strict=True)), name)
        base = next((i for i, listed in enumerate(group.sources) if listed.model == base_ref), None)
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
        for group in self.recipe.groups:
            own = group.scopes[:-1] if self.recipe.parameters else group.scopes
            places += [(group.where, scope) for scope in own]
            places += [(str(listed.model), listed.parameters) for listed in group.sources]
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
