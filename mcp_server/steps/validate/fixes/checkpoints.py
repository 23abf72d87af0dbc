"""What the checkpoints decide: whose tokenizer it is, which folder a name means."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mcp_server.formats.recipe import parse_ref
from mcp_server.formats.recipe.keys import dotted
from mcp_server.steps.validate.checkpoints import has_tokenizer
from mcp_server.steps.validate.context import Context
from mcp_server.steps.validate.fixes.editing import model_names, put
from mcp_server.steps.validate.fixes.registry import fixes
from mcp_server.steps.validate.sources import is_relative


@fixes("MM305")
def add_tokenizer(context: Context) -> Iterator[str]:
    """The base's, whose tokenizer files the output gets anyhow; without a base the choice is the author's."""
    if not has_tokenizer(context) and context.recipe.base:
        context.document["tokenizer"] = {"source": "base"}
        yield "tokenizer: {source: base} added (the vocabularies differ)"


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
