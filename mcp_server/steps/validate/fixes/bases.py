"""The base model: named where the method needs one, listed where it must be, dropped where it would be averaged in."""

from __future__ import annotations

from collections.abc import Iterator

from mcp_server.errors import NotAModel
from mcp_server.formats.recipe import parse_ref
from mcp_server.formats.recipe.keys import dotted
from mcp_server.steps.validate.adapters import base_for
from mcp_server.steps.validate.context import Context
from mcp_server.steps.validate.fixes.editing import model_names, put
from mcp_server.steps.validate.fixes.registry import fixes
from mcp_server.steps.validate.methods import ignores_base, needs_base


@fixes("MM401")
def name_adapters_with_base(context: Context) -> Iterator[str]:
    for path, text in model_names(context.document):
        ref = parse_ref(text)
        found = context.probe(ref)
        if ref.adapter or not (isinstance(found, NotAModel) and found.details.get("kind") == "lora"):
            continue
        if base := base_for(context, ref):
            put(context.document, path, f"{base}+{ref.base}")
            yield f"{dotted(path)}: {text} → {base}+{ref.base}"


@fixes("MM201")
def name_the_base(context: Context) -> Iterator[str]:
    method = context.method
    if method is None or not needs_base(method) or context.document.get("base_model"):
        return
    listed = [source.model for _, source in context.sources()]
    bases = dict.fromkeys(ref.base_ref for ref in listed if ref.adapter)
    if method.inputs.base == "one_of_the_sources" and listed:
        context.document["base_model"] = str(listed[0])
        yield f"base_model: {listed[0]} added (the first model; t = 0 gives it)"
    elif len(bases) == 1 and all(ref.adapter for ref in listed):
        context.document["base_model"] = next(iter(bases))
        yield f"base_model: {next(iter(bases))} added (the model that every adapter is put on)"


@fixes("MM209")
def drop_unused_base(context: Context) -> Iterator[str]:
    if context.method and ignores_base(context.method) and "base_model" in context.document:
        base = context.document.pop("base_model")
        yield f"removed base_model: {base} ({context.method.id} would average it in)"


@fixes("MM202")
def add_base_to_slices(context: Context) -> Iterator[str]:
    for number, group in enumerate(context.recipe.groups()):
        slices = context.document.get("slices")
        if not isinstance(slices, list) or number >= len(slices) or group.base is None:
            return
        if all(source.model != group.base for source in group.sources) and group.sources and group.sources[0].layer_range:
            entry = {"model": str(group.base), "layer_range": list(group.sources[0].layer_range)}
            slices[number]["sources"].append(entry)
            yield f"slices[{number}]: added the base {group.base} with layer_range {entry['layer_range']}"
