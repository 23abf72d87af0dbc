"""The base model: of an adapter that is named alone, and of a recipe whose sources are adapters of one model."""

from __future__ import annotations

from collections.abc import Iterator

from mcp_server.errors import NotAModel
from mcp_server.formats.recipe import parse_ref
from mcp_server.formats.recipe.keys import dotted
from mcp_server.steps.validate.adapters import base_for
from mcp_server.steps.validate.context import Context
from mcp_server.steps.validate.fixes.editing import model_names, put
from mcp_server.steps.validate.fixes.registry import fixes


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
    """Where every source is an adapter on one model, that is the base. From which of two models slerp counts is not known."""
    method = context.method
    if method is None or method.inputs.base != "required" or context.document.get("base_model"):
        return
    listed = [source.model for _, source in context.sources()]
    bases = dict.fromkeys(ref.base_ref for ref in listed if ref.adapter)
    if len(bases) == 1 and all(ref.adapter for ref in listed):
        context.document["base_model"] = next(iter(bases))
        yield f"base_model: {next(iter(bases))} added (the model that every adapter is put on)"
