"""A recipe with other model references: relative paths made absolute, hub ids located, adapters folded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mcp_server.errors import Malformed
from mcp_server.formats.recipe.read import read_text, written
from mcp_server.formats.recipe.refs import parse_ref
from mcp_server.formats.recipe.types import ModelRef

Rewrite = Callable[[ModelRef], ModelRef]
_REF_KEYS = ("model", "base_model", "source_model")


def rewrite_refs(text: str, rewrite: Rewrite) -> str:
    """`text` with every reference passed through `rewrite`. Names that are no reference (tokenizer 'union') stay."""
    documents = read_text(text).documents
    old = [
        {name: item for name, item in document.value.items() if name not in document.homes}
        if isinstance(document.value, dict)
        else document.value
        for document in documents
    ]
    stages = {str(d["name"]) for d in old if isinstance(d, dict) and d.get("name")}
    new = [_walk(value, rewrite, stages, inside_tokenizer=False) for value in old]
    if new == old:
        return text
    return written(new, [document.node for document in documents])


def _walk(value: Any, rewrite: Rewrite, stages: set[str], *, inside_tokenizer: bool) -> Any:
    if isinstance(value, list):
        return [_walk(item, rewrite, stages, inside_tokenizer=inside_tokenizer) for item in value]
    if not isinstance(value, dict):
        return value
    found = {}
    for key, item in value.items():
        inside = inside_tokenizer or key == "tokenizer"
        if key == "parameters":
            found[key] = item
        elif key in _REF_KEYS and item is not None:
            found[key] = _rewritten(item, rewrite, stages)
        elif (key == "tokenizer_source" or (inside and key == "source")) and isinstance(item, str):
            found[key] = item if item in ("base", "union") else _rewritten(item, rewrite, stages)
        else:
            found[key] = _walk(item, rewrite, stages, inside_tokenizer=inside)
    return found


def _rewritten(item: Any, rewrite: Rewrite, stages: set[str]) -> Any:
    try:
        ref = parse_ref(item)
    except Malformed:
        return item
    if ref.base in stages:
        return item
    new = rewrite(ref)
    if new == ref:
        return item
    if new.override_architecture is None:
        return str(new)
    model = {"path": new.base, "revision": new.revision}
    lora = {"path": new.adapter, "revision": new.adapter_revision} if new.adapter else None
    return {"model": model, "lora": lora, "override_architecture": new.override_architecture}
