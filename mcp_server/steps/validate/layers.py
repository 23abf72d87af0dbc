"""MM210, MM211, MM215, MM219 (text alone) and MM303, MM310 (with the models): which layers a recipe takes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from mcp_server.formats.recipe import Group
from mcp_server.formats.recipe.settings import is_gradient
from mcp_server.steps.validate.context import Context, Unknown
from mcp_server.steps.validate.registry import Found, check

MOST_LOOKS: Final = 2_000


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
        if _has_gradient(setting):
            yield Found(f"the gradient of {name} runs anew in each of {len(context.recipe.slices)} slices", f"parameters.{name}")


@check("MM219")
def equal_depths(context: Context) -> Iterator[Found]:
    method = context.known_method()
    if method.cost.kind == "copies":
        return
    for group in context.recipe.groups():
        ranges = dict.fromkeys(source.layer_range for source in group.sources if source.layer_range)
        if len(ranges) > 1 and len({end - start for start, end in ranges}) == 1:
            shown = " and ".join(f"{start}–{end - 1}" for start, end in ranges)
            text = f"{method.id} combines different depths: the sources' layers {shown} are not the same layers"
            yield Found(text, f"{group.where}.sources")


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


def positions(context: Context, group: Group, *names: str) -> list[float]:
    """Where in [0, 1] mergekit looks at a gradient in this group: at each layer, and at 0 for tensors outside the layers.

    Only 0 where none of the parameters `names` has a gradient; only the ends, which every model of two layers or more has,
    where the number of layers is not known or would make this a long search.
    """
    settings = (setting for name in names for source in (None, *group.sources) for setting in group.settings(name, source))
    if not any(_has_gradient(setting) for setting in settings):
        return [0.0]
    count = None
    if group.sources and (span := group.sources[0].layer_range):
        count = span[1] - span[0]
    elif group.sources and (model := context.model(group.sources[0].model)):
        count = model.layers
    if count is None or count < 2 or count * len(group.sources) > MOST_LOOKS:
        return [0.0, 1.0]
    return [n / (count - 1) for n in range(count)]


def _has_gradient(setting: object) -> bool:
    entries = setting if isinstance(setting, list) else [setting]
    return is_gradient(setting) or any(isinstance(entry, dict) and is_gradient(entry.get("value")) for entry in entries)
