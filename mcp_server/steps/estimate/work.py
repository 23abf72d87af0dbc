"""What a merge has to do, in numbers: the output's tensors, the inputs of each, the bytes that are read and written."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mcp_server.engine.memory import factors_of
from mcp_server.errors import MergingError
from mcp_server.formats.adapter_folder import AdapterFolder, open_adapter_folder
from mcp_server.formats.adapter_info import factors
from mcp_server.formats.identity import token_ids
from mcp_server.formats.quantised import Packing
from mcp_server.formats.recipe import ModelRef, Recipe
from mcp_server.formats.tensor_names import is_word_embedding, main_stack, split_layer, stacks, vocabulary_tensor
from mcp_server.formats.tensors import DTYPE_BYTES
from mcp_server.steps.estimate.shapes import ModelShape, TensorSize, model_shape

RANK_UNKNOWN: Final = 64
"""Rank that stands for an adapter that is not here: larger than most."""
MOST_LAYERS: Final = 4096


@dataclass(frozen=True, slots=True)
class OutputTensor:
    """One tensor of the output, with the widths of what it is made of."""

    name: str
    elements: int
    row: int
    """Elements of the last dimension."""
    out_bytes: int
    work_bytes: int
    """Bytes per element in which the inputs are merged: the recipe's dtype, else the widest input's."""
    stored_bytes: tuple[int, ...]
    """Bytes per element of each input as it is stored."""


@dataclass(frozen=True)
class Work:
    """A merge in numbers. `inputs` counts the models of a group, the base included."""

    method: str
    inputs: int
    tensors: tuple[OutputTensor, ...]
    deltas: int
    """Models of a group without the base."""
    adapters: int
    adapter_bytes: int
    factors: int
    """Most elements that the low-rank factors of one tensor hold together, over all adapters."""
    read_bytes: int
    model_bytes: int
    """Bytes of one full model as stored: what folding an adapter into a copy costs on disk."""
    origins: tuple[str, ...]
    views: bool = False
    """Outputs are the inputs' own mapped bytes (passthrough without scale), so an unwritten shard holds no memory."""
    packings: tuple[Packing, ...] = ()
    """How the packed weights of its sources are packed."""
    held: int = 0
    """Bytes that the packed weights of one tensor keep in memory while it is merged, at most."""
    resident_bytes: int = 0
    """A whole model that is loaded while gates are computed (a mixture with hidden gates)."""

    @property
    def out_bytes(self) -> int:
        return sum(tensor.out_bytes for tensor in self.tensors)

    @property
    def elements(self) -> int:
        return sum(tensor.elements for tensor in self.tensors)

    @property
    def largest(self) -> OutputTensor:
        return max(self.tensors, key=lambda tensor: tensor.elements)


def work_of(recipe: Recipe, folder: Path | None = None) -> Work:
    """The work of a merge recipe. Raises `NotFound` or `NotAModel` when a size cannot be known.

    Of several stages the largest counts; a mixture of experts writes the base once and every expert's feed-forward.
    """
    if recipe.kind == "multi":
        return max((work_of(stage, folder) for stage in _without_stage_inputs(recipe)), key=lambda work: work.out_bytes)
    if recipe.kind == "moe":
        return _mixture(recipe, folder)
    shapes = _shapes(recipe, folder)
    donor = recipe.base or next(iter(shapes))
    groups = recipe.groups()
    inputs = max((len(group.sources) for group in groups), default=1)
    out_width = DTYPE_BYTES.get(recipe.out_precision or "")
    merge_width = DTYPE_BYTES.get(recipe.dtype or "")
    widths = {ref: _width(shape) for ref, shape in shapes.items()}
    stored = tuple(widths[s.model] for s in groups[0].sources) if groups else tuple(widths.values())
    work_width = merge_width or max(stored, default=2)
    tensors = tuple(
        OutputTensor(t.name, elements, t.row, elements * (out_width or work_width), work_width, stored)
        for t, elements in _output(recipe, shapes[donor], _rows(recipe, shapes))
    )
    adapters = {ref.adapter_ref: _adapter(ref, folder) for ref in recipe.references() if ref.adapter_ref}
    adapter_bytes = sum(t.nbytes for adapter in adapters.values() if adapter for t in adapter.tensors.values())
    models = {ref.base_ref: shapes[ref].nbytes for ref in shapes}
    return Work(
        method=recipe.method,
        inputs=inputs,
        tensors=tensors,
        adapters=len({str(ref) for ref in recipe.references() if ref.adapter}),
        deltas=max((len(group.others) for group in groups), default=1),
        adapter_bytes=adapter_bytes,
        factors=_factors(list(adapters.values()), shapes[donor]),
        read_bytes=sum(models.values()) + adapter_bytes,
        model_bytes=max(models.values()),
        origins=tuple(dict.fromkeys(shape.origin for shape in shapes.values())),
        views=recipe.method == "passthrough" and not any(_scaled(recipe)),
        packings=tuple(packing for shape in set(shapes.values()) for packing in shape.packings),
        held=sum(shape.held for shape in {ref.base_ref: shapes[ref] for ref in shapes}.values()),
    )


def _scaled(recipe: Recipe) -> Iterator[bool]:
    for group in recipe.groups():
        for source in group.sources:
            yield any(True for _ in group.settings("scale", source))


def _shapes(recipe: Recipe, folder: Path | None) -> dict[ModelRef, ModelShape]:
    opened: dict[str, ModelShape] = {}
    for ref in recipe.references():
        if ref.base_ref not in opened:
            opened[ref.base_ref] = model_shape(ref.base_ref, folder)
    return {ref: opened[ref.base_ref] for ref in recipe.references()}


def _output(recipe: Recipe, donor: ModelShape, rows: int | None) -> Iterator[tuple[TensorSize, int]]:
    """The output's tensors: the donor's, with as many layers as the slices list and as many rows as the tokenizer gives."""
    stack = main_stack(stacks(tensor.name for tensor in donor.tensors)) if recipe.slices else None
    by_layer: dict[int, list[tuple[str, TensorSize]]] = {}
    for tensor in donor.tensors:
        parts = split_layer(tensor.name)
        if parts is not None and parts[0] == stack:
            by_layer.setdefault(parts[1], []).append((parts[2], tensor))
        elif rows and tensor.shape and vocabulary_tensor(tensor.name):
            yield tensor, tensor.elements // tensor.shape[0] * rows
        else:
            yield tensor, tensor.elements
    wanted = [n for s in recipe.slices if s.sources and s.sources[0].layer_range for n in _layers(s.sources[0].layer_range)]
    last = max(by_layer, default=0)
    for position, layer in enumerate(wanted):
        for rest, tensor in by_layer.get(min(max(layer, 0), last), []):
            yield TensorSize(f"{stack}.{position}.{rest}", tensor.shape, tensor.nbytes), tensor.elements


def _layers(layer_range: tuple[int, int]) -> range:
    start, end = layer_range
    return range(start, min(end, start + MOST_LAYERS))


def _rows(recipe: Recipe, shapes: dict[ModelRef, ModelShape]) -> int | None:
    """Rows of the output's embedding when a tokenizer block can change them: an upper bound for a union, else None."""
    source = recipe.tokenizer_from
    if source is None or source == "base":
        return None
    sizes = [t.shape[0] for shape in shapes.values() for t in shape.tensors if t.shape and is_word_embedding(t.name)]
    tables = [ids for shape in shapes.values() if shape.folder and (ids := token_ids(shape.folder)) is not None]
    union = len({token for table in tables for token in table})
    return max([union, *sizes], default=None)


def _adapter(ref: ModelRef, folder: Path | None) -> AdapterFolder | None:
    """The adapter, or None when it is not here: `RANK_UNKNOWN` then stands for its rank."""
    try:
        return open_adapter_folder(ref.adapter_ref or "", folder)
    except MergingError:
        return None


def _factors(adapters: list[AdapterFolder | None], model: ModelShape) -> int:
    """Elements of the factors that one tensor's adapters hold together, at the tensor where that is most."""
    absent = sum(1 for adapter in adapters if adapter is None)
    unknown = factors_of([tensor.shape for tensor in model.tensors], [RANK_UNKNOWN] * absent) if absent else 0
    by_module: dict[str, int] = {}
    for adapter in adapters:
        for module, parts in factors(adapter.tensors).items() if adapter else ():
            by_module[module] = by_module.get(module, 0) + sum(part.count for part in parts.values())
    return max(by_module.values(), default=0) + unknown


def _width(shape: ModelShape) -> int:
    """Bytes per element of most of a model."""
    elements = sum(tensor.elements for tensor in shape.tensors)
    return max(1, round(shape.nbytes / elements)) if elements else 2


def _without_stage_inputs(recipe: Recipe) -> Iterator[Recipe]:
    """Stages with references to earlier stages replaced by that stage's base: the same architecture, so the same sizes."""
    names = {stage.name: stage for stage in recipe.stages if stage.name}

    def stand_in(ref: ModelRef, depth: int = 0) -> ModelRef:
        stage = names.get(ref.base)
        if stage is None or depth > len(names):
            return ref
        first = stage.base or next(iter(stage.references()), None)
        return stand_in(first, depth + 1).model_copy(update={"adapter": ref.adapter}) if first else ref

    for stage in recipe.stages:
        models = tuple(source.model_copy(update={"model": stand_in(source.model)}) for source in stage.models)
        slices = tuple(
            s.model_copy(
                update={
                    "sources": tuple(x.model_copy(update={"model": stand_in(x.model)}) for x in s.sources),
                    "base_model": None,
                }
            )
            for s in stage.slices
        )
        yield stage.model_copy(update={"models": models, "slices": slices, "base": stand_in(stage.base) if stage.base else None})


def _mixture(recipe: Recipe, folder: Path | None) -> Work:
    shapes = _shapes(recipe, folder)
    base = shapes[recipe.base] if recipe.base else next(iter(shapes.values()))
    experts = len(recipe.experts) + len(recipe.shared_experts)
    width = DTYPE_BYTES.get(recipe.dtype or "", _width(base))
    tensors = []
    for tensor in base.tensors:
        copies = experts if ".mlp." in tensor.name else 1
        for n in range(copies):
            name = f"{tensor.name}.{n}" if copies > 1 else tensor.name
            tensors.append(OutputTensor(name, tensor.elements, tensor.row, tensor.elements * width, width, (width,)))
    models = {ref.base_ref: shapes[ref].nbytes for ref in shapes}
    return Work(
        method="moe",
        inputs=experts + 1,
        tensors=tuple(tensors),
        deltas=experts,
        adapters=0,
        adapter_bytes=0,
        factors=0,
        resident_bytes=base.nbytes if recipe.gate_mode == "hidden" else 0,
        read_bytes=sum(models.values()),
        model_bytes=max(models.values()),
        origins=tuple(dict.fromkeys(shape.origin for shape in shapes.values())),
    )
