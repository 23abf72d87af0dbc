"""A merge whose result is stored in FP8 as one of its models is: which tensors become codes with scales, which stay as they are.

The layout is the base's (without one, the first model's); where that is not in FP8, the first model of the recipe that is. Every
tensor that this model stores as FP8 codes becomes codes with scales of the same blocks; every other tensor keeps the dtype that
it has there. Scales of activations are copied. Imports no numpy.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from mcp_server.engine.plan import MergePlan, TensorPlan
from mcp_server.engine.sources import Input, Source
from mcp_server.errors import Unsupported
from mcp_server.formats.quantised.scaled import Scaled
from mcp_server.formats.tensors import DTYPES, FLOATS, StoredTensor

CODES: Final = "F8_E4M3"
_SUFFIXES: Final = ("_scale_inv", "_scale")
_LEAVE: Final = "leave out --output-format fp8, and quantise the merge afterwards"


def in_fp8(plan: MergePlan) -> MergePlan:
    """The plan with FP8 codes where its model in FP8 has them. Raises `Unsupported` where there is none, or it cannot be kept."""
    if plan.layers is not None:
        raise Unsupported("slices number the layers anew, and an FP8 model's config names the layers that are not in FP8", _LEAVE)
    layout = _layout(plan)
    tensors = tuple(made for tensor in plan.tensors for made in _stored_like(layout, tensor))
    if not any(tensor.form for tensor in tensors):
        raise Unsupported(f"no tensor of the merge is stored in FP8 by {layout.ref}", _LEAVE)
    beside = tuple(_beside(layout, {tensor.name for tensor in tensors}))
    ref = next(ref for ref, source in plan.sources.items() if source is layout)
    said = [f"the output is stored in FP8 as {layout.ref} is"] if layout.ref != str(plan.recipe.donor) else []
    if plan.recipe.out_precision and any(
        t.dtype != plan.recipe.out_precision for t in tensors if not t.form and t.how == "merged"
    ):
        said.append(f"dtype {plan.recipe.out_precision} of the recipe has no effect: every tensor is stored as in {layout.ref}")
    if any(tensor.how == "copied" for tensor in beside):
        said.append(f"scales of activations are {layout.ref}'s: they were measured on that model, not on the merge")
    if not layout.checkpoint.quantisation:
        said.append(f"{layout.ref} has no quantization_config, so neither has the output: loaders may not know that it is in FP8")
    return replace(plan, tensors=tensors + beside, warnings=(*plan.warnings, *said), stored_like=ref)


def _layout(plan: MergePlan) -> Source:
    """The model whose FP8 layout the output takes."""
    donor = plan.sources[plan.recipe.donor]
    for source in (donor, *plan.sources.values()):
        if any(_is_fp8(tensor) for tensor in source.checkpoint.tensors.values()):
            return source
    kinds = {source.ref: ", ".join(source.checkpoint.packed_as[:2]) or "not quantised" for source in plan.sources.values()}
    raise Unsupported(
        "--output-format fp8 stores a merge as one of its models is stored, and none is in FP8 (E4M3 codes with scales): "
        + "; ".join(f"{ref} is {kind}" for ref, kind in list(kinds.items())[:4]),
        "leave it out, or name an FP8 copy of the base as base_model",
    )


def _is_fp8(tensor: StoredTensor) -> bool:
    packed = tensor.packed
    return isinstance(packed, Scaled) and packed.codes.dtype == CODES and _suffix(packed) in _SUFFIXES


def _suffix(packed: Scaled) -> str:
    """What the scale's name adds to the weight's."""
    return packed.scale.name.removeprefix(packed.codes.name) if packed.scale.name.startswith(packed.codes.name) else ""


def _stored_like(layout: Source, tensor: TensorPlan) -> Iterator[TensorPlan]:
    twin = layout.checkpoint.tensors.get(layout.own_name(tensor.name))
    if twin is None or tensor.how == "copied":
        yield tensor
        return
    packed = twin.packed
    if packed is None:
        yield replace(tensor, dtype=DTYPES[twin.dtype]) if twin.dtype in FLOATS and twin.dtype != "F64" else tensor
        return
    if not isinstance(packed, Scaled) or not _is_fp8(twin):
        raise Unsupported(f"{tensor.name} of {layout.ref} is stored as {packed.kind}, which is not written", _LEAVE)
    if twin.shape != tensor.shape:
        here, there = list(tensor.shape), list(twin.shape)
        raise Unsupported(f"{tensor.name} is {here} in the merge and {there} in {layout.ref}, whose scales it would take", _LEAVE)
    yield replace(tensor, dtype=DTYPES[CODES], form=packed)
    scale = packed.scale
    stored = StoredTensor(scale.file, scale.offset, scale.dtype, scale.shape, scale.elements)
    inputs = (Input(layout.ref, stored),)
    name = tensor.name + _suffix(packed)
    yield TensorPlan(name, scale.shape, DTYPES[scale.dtype], inputs, None, None, {}, ({},), "scales")


def _beside(layout: Source, taken: set[str]) -> Iterator[TensorPlan]:
    """Scales of activations, under the names that the output gives their modules."""
    back = {own.rpartition(".")[0]: name.rpartition(".")[0] for name, own in layout.renamed.items()}
    for own, stored in layout.checkpoint.left_out.items():
        module, _, last = own.rpartition(".")
        name = f"{back.get(module, module)}.{last}"
        if name not in taken:
            inputs = (Input(layout.ref, stored),)
            yield TensorPlan(name, stored.shape, DTYPES[stored.dtype], inputs, None, None, {}, ({},), "copied")
