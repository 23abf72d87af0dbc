"""MM1xx: keys and values of the recipe's text."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from mcp_server.core.errors import did_you_mean
from mcp_server.core.recipe import keys
from mcp_server.core.validate.context import Context
from mcp_server.core.validate.methods import merge_methods, parameter_names, shared_parameters
from mcp_server.core.validate.registry import Found, check

PLACEHOLDER: Final = re.compile(r"^<.*>$|^\.\.\.$|^…$|path/to/|^your[-_/]|^YOUR_")
OWN: Final = "x-"
"""Keys with this prefix belong to the author: a home for YAML anchors."""


@dataclass(frozen=True, slots=True)
class Key:
    """A key that mergekit will not read where it stands. `belongs` says where it would be read, if anywhere."""

    path: tuple[str | int, ...]
    level: Literal["top", "input", "slice", "module", "parameters", "filter", "tokenizer", "token", "expert"]
    known: Sequence[str]
    belongs: Literal["parameters", "top", "shared", ""]

    @property
    def name(self) -> str:
        return str(self.path[-1])

    @property
    def where(self) -> str:
        return dotted(self.path)


def dotted(path: Sequence[Any]) -> str:
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return text.removeprefix(".")


def unread_keys(context: Context) -> Iterator[Key]:
    """Every key that mergekit does not read at its place, in the order of the text."""
    document = context.document
    if context.recipe.kind == "moe" or is_moe_in_disguise(document):
        yield from _level((), document, "top", (*keys.MOE, "merge_method"))
        for name in ("experts", "shared_experts"):
            for number, entry in _entries(document.get(name)):
                yield from _level((name, number), entry, "expert", keys.EXPERT)
        return
    yield from _level((), document, "top", keys.STAGE)
    yield from _parameters((), document, context, shared_ok=True)
    yield from _inputs((), document, context)
    for name, module in _table(document.get("modules")).items():
        yield from _level(("modules", name), module, "module", keys.MODULE)
        yield from _parameters(("modules", name), module, context, shared_ok=True)
        yield from _inputs(("modules", name), module, context)
    tokenizer = document.get("tokenizer")
    yield from _level(("tokenizer",), tokenizer, "tokenizer", keys.TOKENIZER)
    for token, entry in _table(_table(tokenizer).get("tokens")).items():
        yield from _level(("tokenizer", "tokens", token), entry, "token", keys.TOKEN)


def _inputs(path: tuple[str | int, ...], table: Any, context: Context) -> Iterator[Key]:
    for number, entry in _entries(_table(table).get("models")):
        at = (*path, "models", number)
        yield from _level(at, entry, "input", keys.INPUT)
        yield from _parameters(at, entry, context, shared_ok=False)
    for number, slice_ in _entries(_table(table).get("slices")):
        at = (*path, "slices", number)
        yield from _level(at, slice_, "slice", keys.SLICE)
        yield from _parameters(at, slice_, context, shared_ok=True)
        for inner, source in _entries(_table(slice_).get("sources")):
            place = (*at, "sources", inner)
            yield from _level(place, source, "input", keys.SLICE_INPUT)
            yield from _parameters(place, source, context, shared_ok=False)


def _level(path: tuple[str | int, ...], table: Any, level: Any, known: Sequence[str]) -> Iterator[Key]:
    for name in _table(table):
        if name in known or name.startswith(OWN):
            continue
        takes_parameters = "parameters" in known
        if takes_parameters and name in parameter_names():
            yield Key((*path, name), level, known, "parameters")
        elif path and name in keys.TOP and name not in ("models", "slices", "modules"):
            yield Key((*path, name), level, known, "top")
        else:
            yield Key((*path, name), level, known, "")


def _parameters(path: tuple[str | int, ...], table: Any, context: Context, *, shared_ok: bool) -> Iterator[Key]:
    at = (*path, "parameters")
    shared = {p.name for p in shared_parameters(context.method)} if context.method else set()
    for name, setting in _table(_table(table).get("parameters")).items():
        if name in keys.TOP and name not in parameter_names():
            yield Key((*at, name), "parameters", sorted(parameter_names()), "top")
        elif name in shared and not shared_ok:
            yield Key((*at, name), "parameters", sorted(parameter_names()), "shared")
        for number, entry in _entries(setting):
            if isinstance(entry, dict):
                yield from _level((*at, name, number), entry, "filter", keys.FILTER)


@check("MM103")
def unknown_key(context: Context) -> Iterator[Found]:
    for key in unread_keys(context):
        if not key.belongs:
            known = ", ".join(key.known)
            near = did_you_mean(key.name, key.known)
            yield Found(
                f"{key.name!r} is not a key that mergekit reads here; it is ignored.{near or f' Known here: {known}.'}", key.where
            )


@check("MM104")
def misplaced_key(context: Context) -> Iterator[Found]:
    for key in unread_keys(context):
        if key.belongs == "parameters":
            yield Found(f"{key.name!r} stands beside 'parameters' and is ignored", key.where, "move it into 'parameters:'")
        elif key.belongs == "top":
            yield Found(f"{key.name!r} is ignored here", key.where, f"move it to the top level, as '{key.name}:'")
        elif key.belongs == "shared":
            text = f"{key.name!r} is one value for the whole merge; under a single model it is ignored"
            yield Found(text, key.where, "move it to the recipe's own 'parameters:'")


@check("MM107")
def unknown_method(context: Context) -> Iterator[Found]:
    method = context.recipe.method
    if method and not is_moe(method) and method not in merge_methods():
        hint = did_you_mean(method, merge_methods()) or f" Known: {', '.join(sorted(merge_methods()))}."
        yield Found(f"there is no merge_method {method!r}.{hint}", "merge_method")


@check("MM110")
def moe_as_method(context: Context) -> Iterator[Found]:
    method = context.document.get("merge_method")
    if isinstance(method, str) and is_moe(method):
        yield Found(f"merge_method {method!r} does not exist: a mixture of experts is made by mergekit-moe", "merge_method")


@check("MM111")
def unknown_dtype(context: Context) -> Iterator[Found]:
    for name, value in (("dtype", context.recipe.dtype), ("out_dtype", context.recipe.out_dtype)):
        if value and value.removeprefix("torch.") not in keys.DTYPES:
            meant = dtype_meant(value)
            hint = f" Did you mean {meant!r}?" if meant else f" Known: {', '.join(keys.DTYPES)}."
            yield Found(f"{name} {value!r} is unknown.{hint}", name)


@check("MM113")
def old_form(context: Context) -> Iterator[Found]:
    source = context.recipe.tokenizer_source
    if source and context.recipe.tokenizer is None:
        yield Found(f"tokenizer_source: {source} is the old form", "tokenizer_source", f"tokenizer: {{source: {source}}}")


@check("MM114")
def placeholder(context: Context) -> Iterator[Found]:
    for where, ref in context.named():
        for part in (ref.base, ref.adapter):
            if part and PLACEHOLDER.search(part.strip()):
                yield Found(f"{part!r} is a placeholder", where)


@check("MM115")
def unknown_chat_template(context: Context) -> Iterator[Found]:
    template = context.recipe.chat_template
    if template and template not in keys.CHAT_TEMPLATES and (len(template) < 20 or "{" not in template):
        hint = did_you_mean(template, keys.CHAT_TEMPLATES) or f" Known: {', '.join(keys.CHAT_TEMPLATES)}."
        yield Found(f"chat_template {template!r} is neither a built-in name nor a Jinja template.{hint}", "chat_template")


def is_moe(method: str) -> bool:
    return method.lower().replace("-", "_") in ("moe", "mixture_of_experts", "mergekit_moe")


def is_moe_in_disguise(document: dict[str, Any]) -> bool:
    method = document.get("merge_method")
    return isinstance(method, str) and is_moe(method) and "experts" in document


def dtype_meant(value: str) -> str | None:
    short = {"bf16": "bfloat16", "fp16": "float16", "f16": "float16", "half": "float16", "fp32": "float32", "f32": "float32"}
    short |= {"float": "float32", "fp64": "float64", "double": "float64"}
    wanted = value.lower().removeprefix("torch.")
    if wanted in keys.DTYPES:
        return wanted
    return short.get(wanted) or nearest(wanted, keys.DTYPES)


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that a misspelt one surely means, or None: nearer than what a message would only suggest."""
    near = difflib.get_close_matches(name.lower(), list(known), n=1, cutoff=0.75)
    return near[0] if near else None


def _table(value: Any) -> dict[str, Any]:
    return {str(k): v for k, v in value.items()} if isinstance(value, dict) else {}


def _entries(value: Any) -> Iterator[tuple[int, Any]]:
    if isinstance(value, list):
        yield from enumerate(value)
