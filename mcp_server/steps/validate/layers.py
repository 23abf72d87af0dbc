"""MM210, MM211, MM215 (text alone) and MM303, MM310 (with the models): which layers a recipe takes."""

from __future__ import annotations

from collections.abc import Iterator

from mcp_server.formats.recipe import Group
from mcp_server.formats.recipe.settings import is_filters, is_gradient
from mcp_server.steps.validate.context import Context, Unknown
from mcp_server.steps.validate.registry import Found, check


@check("MM210")
def equal_lengths(context: Context) -> Iterator[Found]:
    for group in context.recipe.groups():
        ranges = {source.layer_range for source in group.sources if source.layer_range}
        if len({end - start for start, end in ranges}) > 1:
            shown = ", ".join(str([start, end]) for start, end in sorted(ranges))
            yield Found(f"the ranges {shown} have different lengths", f"{group.where}.sources")


@check("MM211")
def forward_ranges(context: Context) -> Iterator[Found]:
    for where, source in context.sources():
        if source.layer_range is None:
            continue
        start, end = source.layer_range
        if start < 0 or end <= start:
            model = context.model(source.model)
            layers = f"{model.layers}" if model and model.layers else "the number of layers"
            text = f"layer_range [{start}, {end}] is {'empty' if end == start else 'not a range of layers'}"
            yield Found(text, f"{where}.layer_range", f"count from 0 to {layers}, the end not included")


@check("MM215")
def gradient_restarts(context: Context) -> Iterator[Found]:
    if len(context.recipe.slices) < 2:
        return
    for name, setting in context.recipe.parameters.items():
        inner = [entry.get("value") for entry in setting if isinstance(entry, dict)] if isinstance(setting, list) else []
        if is_gradient(setting) or (is_filters(setting) and any(is_gradient(value) for value in inner)):
            yield Found(f"the gradient of {name} runs anew in each of {len(context.recipe.slices)} slices", f"parameters.{name}")


@check("MM303")
def range_inside_model(context: Context) -> Iterator[Found]:
    for where, source in context.sources():
        model = context.model(source.model)
        if source.layer_range is None or model is None or model.layers is None:
            continue
        if source.layer_range[1] > model.layers:
            start, end = source.layer_range
            text = f"layer_range [{start}, {end}] goes past {source.model}, which has {model.layers} layers"
            yield Found(text, f"{where}.layer_range", f"end it at {model.layers}")


@check("MM310")
def layers_left_out(context: Context) -> Iterator[Found]:
    method = context.known_method()
    if not context.recipe.slices or method.cost.kind == "copies":
        return
    groups = context.recipe.groups()
    first = groups[0].sources[0].model if groups and groups[0].sources else None
    model = context.model(first) if first else None
    if model is None or model.layers is None or first is None:
        raise Unknown("the number of layers is not known")
    covered = {layer for group in groups for layer in _covered(group)}
    missing = sorted(set(range(model.layers)) - covered)
    if missing:
        text = f"the slices leave out {len(missing)} of {model.layers} layers ({_runs(missing)})"
        yield Found(text, "slices", "cover all layers, or list the models under 'models:'")


def _covered(group: Group) -> Iterator[int]:
    for source in group.sources[:1]:
        if source.layer_range:
            yield from range(max(0, source.layer_range[0]), min(source.layer_range[1], 100_000))


def _runs(numbers: list[int]) -> str:
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(a) if a == b else f"{a}–{b}" for a, b in runs[:5]) + (" …" if len(runs) > 5 else "")
