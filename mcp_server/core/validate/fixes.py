"""Corrections of `--fix`: small functions that change the raw document and say what they changed.

A correction is made only where the recipe, the catalogue or the checkpoints decide what was meant; everything else stays a
finding. Functions run in the order of the file; each sees the document as the ones before left it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from mcp_server.core.errors import NotAModel
from mcp_server.core.recipe import ModelRef, keys, parse_ref
from mcp_server.core.recipe.settings import is_scalar
from mcp_server.core.validate.adapters import base_for
from mcp_server.core.validate.checkpoints import has_tokenizer, is_relative, vocabulary_rows
from mcp_server.core.validate.context import Context
from mcp_server.core.validate.form import Key, dotted, dtype_meant, is_moe, nearest, unread_keys
from mcp_server.core.validate.methods import ignores_base, merge_methods, needs_base, parameter_names

Fix = Callable[[Context], Iterator[str]]
FIXES: Final[dict[str, Fix]] = {}
Route = tuple[Any, ...]
"""Keys and positions that lead to a value; keys are as YAML read them."""


def fixes(*codes: str) -> Callable[[Fix], Fix]:
    """Register the function that corrects these codes."""

    def register(function: Fix) -> Fix:
        for code in codes:
            if code in FIXES:
                raise ValueError(f"{code} is corrected twice")
            FIXES[code] = function
        return function

    return register


def apply_fixes(context: Context, codes: set[str]) -> list[str]:
    """Correct what was found. A function that several codes share runs once."""
    done: dict[Fix, None] = {}
    changes: list[str] = []
    for code, function in FIXES.items():
        if code in codes and function not in done:
            done[function] = None
            changes += function(context)
    return changes


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
    if key.belongs == "top":
        target, place = context.document, "the top level"
    elif key.belongs == "shared":
        target, place = context.document.setdefault("parameters", {}), "the recipe's parameters"
    else:
        target, place = table.setdefault("parameters", {}), "parameters"
    if not isinstance(target, dict):
        return
    value = table.pop(key.name)
    if key.name in target:
        yield f"{key.where}: removed, {place} already has {key.name}"
        return
    target[key.name] = value
    yield f"{key.where}: moved to {place}"
    parent = follow(context.document, key.path[:-2])
    if key.path[-2:-1] == ("parameters",) and not table and isinstance(parent, dict):
        parent.pop("parameters", None)


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
    source = context.document.pop("tokenizer_source", None)
    if context.document.get("tokenizer"):
        yield f"removed tokenizer_source: {source} (tokenizer stays)"
    elif source:
        context.document["tokenizer"] = {"source": source}
        yield f"tokenizer_source: {source} → tokenizer: {{source: {source}}}"


@fixes("MM205", "MM206")
def correct_parameters(context: Context) -> Iterator[str]:
    mine = [p.name for p in context.method.parameters] if context.method else []
    for path, table in parameter_tables(context.document):
        for name in list(table):
            if name in mine or name in keys.TOP:
                continue
            where = dotted((*path, name))
            near = nearest(name, mine)
            if name not in parameter_names() and near and near not in table:
                table[near] = table.pop(name)
                yield f"{where}: renamed to {near}"
            elif name in parameter_names() and context.method:
                del table[name]
                yield f"{where}: removed, {context.method.id} does not read it"


@fixes("MM207")
def legal_values(context: Context) -> Iterator[str]:
    for path, table in parameter_tables(context.document):
        for name, value in list(table.items()):
            parameter = context.method.parameter(name) if context.method else None
            if parameter is None or not is_scalar(value) or not parameter.problem(value):
                continue
            candidates: list[Any] = []
            if parameter.type == "bool" and str(value).lower() in ("true", "false", "yes", "no", "0", "1"):
                candidates.append(str(value).lower() in ("true", "yes", "1"))
            if parameter.range and isinstance(value, (int, float)):
                limits = (parameter.range.at_most, parameter.range.at_least)
                candidates += [limit for limit in limits if limit is not None and (value > limit) == (limit == limits[0])]
            candidates += [parameter.start, parameter.default]
            for candidate in candidates:
                if candidate is not None and not parameter.problem(candidate):
                    table[name] = candidate
                    yield f"{dotted((*path, name))}: {value} → {candidate}"
                    break


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


@fixes("MM204")
def required_values(context: Context) -> Iterator[str]:
    method = context.method
    groups = context.recipe.groups()
    for parameter in (p for p in method.parameters if p.required) if method else ():
        settings = [
            list(g.settings(parameter.name, s)) for g in groups for s in g.sources if s.model != g.base or not g.base_added
        ]
        if not settings or any(found for found in settings if found and parameter.scope == "shared"):
            continue
        if any(settings) or parameter.name in (context.document.get("parameters") or {}):
            continue  # some inputs have one: which the others should have is not ours to say
        value = parameter.start if parameter.start is not None else _equal_share(context)
        context.document.setdefault("parameters", {})[parameter.name] = value
        yield f"parameters.{parameter.name}: {value} added (it is required)"


def _equal_share(context: Context) -> float:
    """1 where weights are normalised or summed as deltas of one source; equal shares otherwise."""
    method, groups = context.method, context.recipe.groups()
    count = max((len(group.others) for group in groups), default=1)
    if method is None or method.weights == "mean_one" or method.parameter("normalize") is not None:
        return 1.0
    return round(1 / max(1, count), 4)


@fixes("MM216")
def lower_epsilon(context: Context) -> Iterator[str]:
    parameters = context.document.setdefault("parameters", {})
    groups = context.recipe.groups()
    densities = [d for g in groups for s in g.others for d in g.settings("density", s)][:100]
    numbers = [float(d) for d in densities if isinstance(d, (int, float)) and 0 < d < 1]
    own = any("epsilon" in source.parameters for _, source in context.sources())
    if isinstance(parameters, dict) and numbers and len(numbers) == len(densities) and not own:
        value = round(0.9 * min(min(d, 1 - d) for d in numbers), 4)
        parameters["epsilon"] = value
        yield f"parameters.epsilon: {value} (density ± epsilon must stay inside (0, 1))"


@fixes("MM211", "MM303")
def end_at_last_layer(context: Context) -> Iterator[str]:
    for path, entry in slice_sources(context.document):
        span = entry.get("layer_range")
        ref = entry.get("model")
        model = (
            context.model(parse_ref(ref)) if isinstance(ref, str) and ref.count("+") < 2 and ref.count("@") < 2 and ref else None
        )
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


@fixes("MM601")
def correct_gate_mode(context: Context) -> Iterator[str]:
    mode = context.document.get("gate_mode")
    if isinstance(mode, str) and (near := nearest(mode, keys.GATE_MODES)):
        context.document["gate_mode"] = near
        yield f"gate_mode: {mode} → {near}"


def follow(document: Any, path: tuple[Any, ...]) -> Any:
    """The value at a path, or None where the document has another form."""
    for part in path:
        if isinstance(document, dict):
            document = document.get(part)
        elif isinstance(document, list) and isinstance(part, int) and part < len(document):
            document = document[part]
        else:
            return None
    return document


def put(document: Any, path: Route, value: Any) -> None:
    if isinstance(parent := follow(document, path[:-1]), dict):
        parent[path[-1]] = value


def parameter_tables(document: Any, path: Route = ()) -> Iterator[tuple[Route, dict[str, Any]]]:
    """Every 'parameters' table of the document, with its path."""
    if isinstance(document, dict):
        for name, value in document.items():
            if name == "parameters" and isinstance(value, dict):
                yield (*path, name), value
            elif name in ("models", "slices", "modules", "sources") or (path and path[-1] == "modules"):
                yield from parameter_tables(value, (*path, name))
    elif isinstance(document, list):
        for number, value in enumerate(document):
            yield from parameter_tables(value, (*path, number))


def slice_sources(document: Any, path: Route = ()) -> Iterator[tuple[Route, dict[str, Any]]]:
    """Every table that has a layer_range, with its path."""
    if isinstance(document, dict):
        if "layer_range" in document:
            yield path, document
        for name, value in document.items():
            yield from slice_sources(value, (*path, name))
    elif isinstance(document, list):
        for number, value in enumerate(document):
            yield from slice_sources(value, (*path, number))


def model_names(document: dict[str, Any]) -> list[tuple[Route, str]]:
    """Every model name in text form that can be parsed, with its path; base_model first, so that adapters find it."""
    found: list[tuple[Route, str]] = []

    def look(value: Any, path: Route) -> None:
        if isinstance(value, dict):
            for name, inner in value.items():
                if name in ("model", "base_model", "source_model") and isinstance(inner, str):
                    found.append(((*path, name), inner))
                elif name not in ("parameters", "tokenizer"):
                    look(inner, (*path, name))
        elif isinstance(value, list):
            for number, inner in enumerate(value):
                look(inner, (*path, number))

    look(document, ())
    parseable = [entry for entry in found if _parses(entry[1])]
    return sorted(parseable, key=lambda entry: entry[0][-1] != "base_model")


def _parses(text: str) -> ModelRef | None:
    plain = text.count("+") < 2 and all(part.strip() and part.count("@") < 2 for part in text.split("+"))
    return parse_ref(text) if plain and not any(part.startswith("@") for part in text.split("+")) else None
