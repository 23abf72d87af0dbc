"""From a recipe and headers to a list of output tensors: what each is made of, with every parameter resolved.

Everything that can be wrong is found here, before a weight is read. Tensors are matched by name (`matching`), so any number of
stacks, towers and heads can be merged; layer numbers matter only to slices and gradients, whose meaning is that of mergekit
0.1.5's planner: tensors before the layers take the first slice's sources, tensors after the layers the last one's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from mcp_server.engine import matching
from mcp_server.engine.blocks import BLOCK_ELEMENTS
from mcp_server.engine.layer_settings import layer_settings
from mcp_server.engine.signatures import SIGNATURES, Signature
from mcp_server.engine.sources import Input, Source, open_sources
from mcp_server.engine.tensor_settings import TensorSettings
from mcp_server.engine.vocabulary import Vocabulary, align
from mcp_server.errors import Incompatible, Malformed, Unsupported, did_you_mean
from mcp_server.formats import tensor_names
from mcp_server.formats.checkpoint import require_float
from mcp_server.formats.quantised.scaled import Float8, Scaled
from mcp_server.formats.recipe import KEEPS_TIES, Group, ModelRef, Recipe
from mcp_server.formats.recipe import Source as Listed
from mcp_server.formats.tensors import DTYPES, FLOATS

How = Literal["merged", "kept", "copied", "scales"]
"""Merged by the method; kept: the donor's values, in the output's dtype; copied: the donor's bytes (buffers, integers).

Scales belong to the FP8 codes of the tensor before them, and are written with it.
"""


@dataclass(frozen=True, slots=True)
class TensorPlan:
    """One output tensor. `inputs` keep the recipe's order; `base` indexes the base among them, if the method knows one.

    `reference` is what deltas are measured from: the base, or the model that all adapters share, or None. Of a copied tensor the
    first input is the donor's, the others are compared with it.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    inputs: tuple[Input, ...]
    base: int | None
    reference: Input | None
    shared: dict[str, Any]
    per_source: tuple[dict[str, Any], ...]
    how: How = "merged"
    form: Scaled | None = None
    """Where the output holds FP8 codes: how the model that it is stored like has them."""

    @property
    def count(self) -> int:
        return self.inputs[0].stored.count


@dataclass(frozen=True)
class MergePlan:
    """The whole output. For slices: `layers`, the source of each output layer, and `layer_settings`, what the config says of it.

    A setting of None is one that the output's config must not have.
    """

    recipe: Recipe
    sources: dict[ModelRef, Source]
    tensors: tuple[TensorPlan, ...]
    warnings: tuple[str, ...]
    layers: tuple[tuple[ModelRef, int], ...] | None = None
    layer_settings: dict[str, Any] = field(default_factory=dict)
    vocabulary: Vocabulary | None = None
    """Where the sources number their tokens differently, or the recipe asks for other rows."""
    stored_like: ModelRef | None = None
    """The model whose quantised form the output has; None: the output is not quantised."""

    @property
    def scales_are_powers(self) -> bool:
        """Whether the model whose form the output has says that its FP8 scales are powers of two (DeepSeek's scale_fmt)."""
        return self.stored_like is not None and self.sources[self.stored_like].checkpoint.quantisation.get("scale_fmt") == "ue8m0"

    @property
    def labels(self) -> tuple[str, ...]:
        """The sources whose deltas are reported, in order: every input but the base."""
        found = {
            entry.source: None
            for tensor in self.tensors
            if tensor.how == "merged"
            for i, entry in enumerate(tensor.inputs)
            if i != tensor.base
        }
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
    warnings = (*planner.said, *planner.warnings(tensors))
    if not planner.sliced:
        return MergePlan(recipe, planner.sources, tensors, warnings, vocabulary=planner.vocabulary)
    configs = [(planner.sources[ref].checkpoint.config, layer) for ref, layer in planner.layers]
    settings = layer_settings(planner.donor.checkpoint.config, configs)
    return MergePlan(recipe, planner.sources, tensors, warnings, tuple(planner.layers), settings, planner.vocabulary)


class _Planner:
    def __init__(self, recipe: Recipe, signature: Signature, sources: dict[ModelRef, Source]) -> None:
        self.recipe, self.signature, self.groups = recipe, signature, recipe.groups()
        self.donor = sources[recipe.donor]
        self.sources: dict[ModelRef, Source] = {}
        self.said: list[str] = []
        for ref, source in sources.items():
            self.sources[ref], said = matching.reconcile(self.donor, source)
            self.said += [*source.notes, *([said] if said else [])]
            if wrapper := source.checkpoint.wrapper:
                self.said.append(f"the names in {ref} hold the wrapper {wrapper!r}, which the output leaves out")
        self.sources, self.vocabulary = align(recipe, self.sources)
        self.said += [self.vocabulary.said] if self.vocabulary else []
        self.donor = self.sources[recipe.donor]
        self.layers: list[tuple[ModelRef, int]] = []
        self.sliced = self.groups[0].sources[0].layer_range is not None
        self.stack = tensor_names.main_stack(self.donor.stacks)
        self.settings = TensorSettings(recipe.method, self.groups, signature, self.donor, self.stack)
        for group in self.groups:
            refs = [str(listed.model) for listed in group.sources]
            signature.check_inputs(refs, str(group.base) if group.base else None, recipe.method)

    def tensors(self) -> Iterator[TensorPlan]:
        if self.sliced:
            yield from self._stacked()
            return
        [group] = self.groups
        opened = [self.sources[listed.model] for listed in group.sources]
        for source in opened:
            self._check_depth(source)
        for line in matching.lines(self.donor, opened):
            names = [source.own_name(line.name) for source in opened]
            yield self._kept(line.name) if line.kept else self._tensor(group, line.name, names, self._place(line.name))

    def _place(self, name: str) -> float:
        """Where in a gradient a tensor lies: its layer in its own stack; the start for tensors outside the layers."""
        found = tensor_names.split_layer(name)
        if found is None:
            return 0.0
        last = self._depths[found[0]] - 1
        return min(1.0, found[1] / last) if last > 0 else 1.0

    @cached_property
    def _depths(self) -> dict[str, int]:
        """Layers of every stack; of the main one as many as the config says, so that next-token layers lie at its end."""
        found = dict(self.donor.stacks)
        return found | ({self.stack: self.donor.layer_count(self.stack)} if self.stack else {})

    def _check_depth(self, source: Source) -> None:
        """Sources of other depths are no fault of a single tensor, so they are named as what they are."""
        if self.stack is None:
            return
        own, theirs = self.donor.layer_count(self.stack), tensor_names.main_stack(source.stacks)
        count = source.layer_count(theirs) if theirs else own
        if count != own:
            raise Incompatible(
                f"{source.ref} has {count} layers {theirs!r}, {self.donor.ref} has {own} layers {self.stack!r}",
                "sources must have the same architecture and number of layers; for stacking use passthrough with slices",
            )

    def _stacked(self) -> Iterator[TensorPlan]:
        if self.stack is None:
            raise Incompatible(
                f"{self.donor.ref} has several stacks of layers ({', '.join(self.donor.stacks) or 'none'}), and a slice does not "
                "say which of them it cuts",
                "merge the whole models, without slices",
            )
        first, last = self.groups[0], self.groups[-1]
        groups = [first] if first is last else [first, last]
        refs = dict.fromkeys(listed.model for group in groups for listed in group.sources)
        outside = []
        for line in matching.lines(self.donor, [self.sources[ref] for ref in refs], skip=self.stack):
            outside.append(line)
        for line in outside:
            if tensor_names.is_before_layers(line.name):
                yield self._outside(first, line)
        for group in self.groups:
            yield from self._layers(group, self.stack)
        for line in outside:
            if not tensor_names.is_before_layers(line.name):
                yield self._outside(last, line)

    def _outside(self, group: Group, line: matching.Line) -> TensorPlan:
        names = [self.sources[listed.model].own_name(line.name) for listed in group.sources]
        return self._kept(line.name) if line.kept else self._tensor(group, line.name, names, 0.0)

    def _layers(self, group: Group, stack: str) -> Iterator[TensorPlan]:
        template = group.sources[0]
        names = self.sources[template.model].names_in_layers(stack)
        for listed in group.sources:
            self._check_layers(listed, stack, names, template)
        first, end = self._range(template, stack)
        for offset in range(end - first):
            t = offset / (end - first - 1) if end - first > 1 else 1.0
            for rest in names[first + offset]:
                inputs = [f"{stack}.{self._range(listed, stack)[0] + offset}.{rest}" for listed in group.sources]
                yield self._tensor(group, f"{stack}.{len(self.layers)}.{rest}", inputs, t)
            self.layers.append((template.model, first + offset))

    def _range(self, listed: Listed, stack: str) -> tuple[int, int]:
        """Its first layer, and one past its last."""
        return listed.layer_range or (0, self.sources[listed.model].layer_count(stack))

    def _check_layers(self, listed: Listed, stack: str, names: dict[int, list[str]], template: Listed) -> None:
        source = self.sources[listed.model]
        if source.renamed or stack not in source.stacks:
            raise Incompatible(
                f"{listed.model} has its layers in {', '.join(source.stacks) or 'no stack'}, {template.model} in {stack}",
                "sources of slices must spell their tensors alike; check with `inspect`",
            )
        mine, count = source.names_in_layers(stack), source.layer_count(stack)
        if len(mine) > count:
            raise Incompatible(
                f"{listed.model} stores next-token layers behind its {count} layers, which slices would misplace",
                "merge the whole models, without slices",
            )
        first, end = self._range(listed, stack)
        if end > count:
            raise Incompatible(f"layer_range [{first}, {end}] of {listed.model} exceeds its {count} layers", f"end it at {count}")
        start, stop = self._range(template, stack)
        if end - first != stop - start:
            raise Incompatible(
                f"{listed.model} has {end - first} layers, {template.model} has {stop - start} layers",
                "give them ranges of one length",
            )
        for offset in range(end - first):
            ours, theirs = set(mine.get(first + offset, [])), set(names.get(start + offset, []))
            if ours != theirs:
                odd = sorted(ours ^ theirs)[0]
                has, lacks = (listed.model, template.model) if odd in ours else (template.model, listed.model)
                raise Incompatible(f"layer tensor {odd!r} is in {has} but not in {lacks}", "sources must share an architecture")

    def _kept(self, name: str) -> TensorPlan:
        found = self.donor.find(name)
        assert found is not None, name
        if found.stored.dtype not in FLOATS or tensor_names.is_buffer(name, found.stored.shape):
            return self._copied(name, [found])
        plain = Input(self.donor.ref, self.donor.checkpoint.tensors[name])
        return TensorPlan(name, plain.stored.shape, self._dtype([plain]), (plain,), None, None, {}, ({},), "kept")

    def _copied(self, name: str, inputs: list[Input]) -> TensorPlan:
        """The donor's bytes: integers that count, masks, frequencies. (Packed weights are unpacked before they get here.)"""
        mine = next((entry for entry in inputs if entry.source == self.donor.ref), inputs[0])
        rest = tuple(entry for entry in inputs if entry is not mine)
        every = (mine, *rest)
        return TensorPlan(name, mine.stored.shape, DTYPES[mine.stored.dtype], every, None, None, {}, ({},) * len(every), "copied")

    def _tensor(self, group: Group, name: str, names: list[str], t: float) -> TensorPlan:
        inputs = []
        for listed, stored_name in zip(group.sources, names, strict=True):
            source = self.sources[listed.model]
            found = source.find(name) if source.own_name(name) == stored_name else source.find(stored_name)
            if found is None:
                raise Incompatible(f"{stored_name!r} is missing in {listed.model}", "sources must share an architecture")
            inputs.append(found)
        self._check_shapes(name, inputs)
        if inputs[0].stored.dtype not in FLOATS or tensor_names.is_buffer(name, inputs[0].stored.shape):
            return self._copied(name, inputs)
        for entry in inputs:
            require_float(name, entry.stored)
        shared, per_source = self.settings.of(group, name, names, inputs, t)
        self._check_rows(name, inputs[0].stored.shape)
        base_ref = group.base if self.signature.base != "ignored" else None
        base = next((i for i, listed in enumerate(group.sources) if listed.model == base_ref), None)
        return TensorPlan(
            name,
            inputs[0].stored.shape,
            self._dtype(inputs),
            tuple(inputs),
            base,
            _reference(inputs, base, self.signature),
            shared,
            per_source,
        )

    def _check_shapes(self, name: str, inputs: list[Input]) -> None:
        first = inputs[0]
        for entry in inputs:
            if entry.stored.shape != first.stored.shape:
                raise Incompatible(
                    f"{name} is {list(first.stored.shape)} in {first.source}, {list(entry.stored.shape)} in {entry.source}",
                    "differing vocabularies need a tokenizer block, such as tokenizer: {source: union}"
                    if tensor_names.vocabulary_tensor(name)
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
            return found.pop() if len(found) == 1 and "float64" not in found else "float32"
        if chosen not in FLOATS.values() or chosen == "float64":
            raise Unsupported(f"dtype {chosen!r} is not written by this engine", "use bfloat16, float16 or float32")
        return chosen

    def warnings(self, tensors: tuple[TensorPlan, ...]) -> Iterator[str]:
        """What the plan does that the recipe does not say, and what the recipe says that nothing reads."""
        for source in self.sources.values():
            yield from source.adapter.notes if source.adapter else ()
            plain = [name for name, tensor in source.checkpoint.tensors.items() if isinstance(tensor.packed, Float8)]
            if plain:
                more = f" and {len(plain) - 1} more" if plain[1:] else ""
                yield (
                    f"{source.ref} stores {plain[0]}{more} as FP8 without a scale, and its config speaks of none: they are plain "
                    "numbers, as transformers loads them"
                )
        yield from matching.kept_warnings(self.donor.ref, [tensor.name for tensor in tensors if tensor.how == "kept"])
        wide = {
            entry.source for tensor in tensors if tensor.how == "merged" for entry in tensor.inputs if entry.stored.dtype == "F64"
        }
        if wide:
            yield f"{', '.join(sorted(wide))} is float64: it is merged in float32 and written in the output's dtype"
        known = {*self.signature.source, *self.signature.shared, KEEPS_TIES}
        places = [("the recipe", self.recipe.parameters)]
        for group in self.groups:
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
    if signature.base == "ignored" and len(stored) == 1 and any(entry.updates for entry in inputs):
        return Input("shared base", inputs[0].stored)
    return None
