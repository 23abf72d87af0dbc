"""A word that is known under another spelling: keys, their place, the method, the dtype, the gate mode, the tokenizer's form."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mcp_server.formats.recipe import keys
from mcp_server.steps.validate.context import Context
from mcp_server.steps.validate.fixes.editing import follow, own_parameters
from mcp_server.steps.validate.fixes.registry import fixes
from mcp_server.steps.validate.form import Key, dtype_meant, is_moe, nearest, unread_keys
from mcp_server.steps.validate.methods import merge_methods


@fixes("MM110")
def drop_moe_method(context: Context) -> Iterator[str]:
    method = context.document.get("merge_method")
    if isinstance(method, str) and is_moe(method) and "experts" in context.document:
        del context.document["merge_method"]
        yield f"removed merge_method: {method} (a recipe with experts is run by mergekit-moe)"


@fixes("MM103", "MM104")
def place_keys(context: Context) -> Iterator[str]:
    for key in list(unread_keys(context)):
        table = follow(context.document, key.path[:-1])
        if not isinstance(table, dict) or key.name not in table:
            continue
        if key.belongs:
            yield from _move(context, key, table)
        elif (near := nearest(key.name, key.known)) and near not in table:
            table[near] = table.pop(key.name)
            yield f"{key.where}: renamed to {near}"


def _move(context: Context, key: Key, table: dict[str, Any]) -> Iterator[str]:
    """To where mergekit reads it, unless something is there already, or one input's setting would become everybody's."""
    if key.belongs == "top" and key.path[:-1] == ("parameters",):
        target, place = context.document, "the top level"
    elif key.belongs == "parameters" and key.name not in (table.get("parameters") or {}):
        target, place = own_parameters(table), "parameters"
    else:
        return
    if not isinstance(target, dict) or key.name in target:
        return
    target[key.name] = table.pop(key.name)
    yield f"{key.where}: moved to {place}"
    if key.belongs == "top" and not table:
        context.document.pop("parameters", None)


@fixes("MM107")
def correct_method(context: Context) -> Iterator[str]:
    method = context.document.get("merge_method")
    if isinstance(method, str) and (near := nearest(method, merge_methods())):
        context.document["merge_method"] = near
        yield f"merge_method: {method} → {near}"


@fixes("MM111")
def correct_dtype(context: Context) -> Iterator[str]:
    for name in ("dtype", "out_dtype"):
        value = context.document.get(name)
        if isinstance(value, str) and value.removeprefix("torch.") not in keys.DTYPES and (meant := dtype_meant(value)):
            context.document[name] = meant
            yield f"{name}: {value} → {meant}"


@fixes("MM112", "MM113")
def new_tokenizer_form(context: Context) -> Iterator[str]:
    source, tokenizer = context.document.get("tokenizer_source"), context.document.get("tokenizer")
    if not isinstance(source, str):
        return
    if tokenizer is None:
        del context.document["tokenizer_source"]
        context.document["tokenizer"] = {"source": source}
        yield f"tokenizer_source: {source} → tokenizer: {{source: {source}}}"
    elif isinstance(tokenizer, dict) and tokenizer.get("source") == source:
        del context.document["tokenizer_source"]
        yield f"removed tokenizer_source: {source} (tokenizer says the same)"


@fixes("MM601")
def correct_gate_mode(context: Context) -> Iterator[str]:
    mode = context.document.get("gate_mode")
    if isinstance(mode, str) and (near := nearest(mode, keys.GATE_MODES)):
        context.document["gate_mode"] = near
        yield f"gate_mode: {mode} → {near}"
