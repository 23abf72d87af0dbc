"""What the checkpoints decide: where the layers end, whose tokenizer it is, which folder a name means."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mcp_server.formats.recipe import parse_ref
from mcp_server.formats.recipe.keys import dotted
from mcp_server.steps.validate.checkpoints import has_tokenizer, vocabulary_rows
from mcp_server.steps.validate.context import Context
from mcp_server.steps.validate.fixes.editing import model_names, put, readable, slice_sources
from mcp_server.steps.validate.fixes.registry import fixes
from mcp_server.steps.validate.sources import is_relative


@fixes("MM211", "MM303")
def end_at_last_layer(context: Context) -> Iterator[str]:
    for path, entry in slice_sources(context.document):
        span, name = entry.get("layer_range"), entry.get("model")
        ref = readable(name) if isinstance(name, str) else None
        model = context.model(ref) if ref else None
        layers = model.layers if model else None
        if not layers or not (isinstance(span, list) and len(span) == 2 and all(type(v) is int for v in span)):
            continue
        start, end = span
        if 0 <= start < layers and (end > layers or end < 0):
            new = [start, layers]
            entry["layer_range"] = new
            yield f"{dotted(path)}.layer_range: {span} → {new} ({ref} has {layers} layers)"


@fixes("MM305")
def add_tokenizer(context: Context) -> Iterator[str]:
    rows = {vocabulary_rows(model) for model in context.opened().values()}
    if not has_tokenizer(context) and len(rows) > 1:
        source = "base" if context.recipe.base else "union"
        context.document["tokenizer"] = {"source": source}
        yield f"tokenizer: {{source: {source}}} added (the vocabularies differ)"


@fixes("MM316")
def absolute_paths(context: Context) -> Iterator[str]:
    for path, text in model_names(context.document):
        ref = parse_ref(text)
        if context.is_stage(ref):
            continue
        update = {
            name: str((context.folder / Path(part).expanduser()).resolve())
            for name, part in (("base", ref.base), ("adapter", ref.adapter))
            if part and is_relative(part, context.folder)
        }
        if update:
            new = str(ref.model_copy(update=update))
            put(context.document, path, new)
            yield f"{dotted(path)}: {text} → {new}"
