"""MM1xx: keys and values of the recipe's text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from mcp_server.errors import did_you_mean
from mcp_server.formats.recipe import keys
from mcp_server.formats.recipe.idle import is_idle
from mcp_server.formats.recipe.keys import Path, Table, dotted, tables
from mcp_server.steps.validate.context import Context
from mcp_server.steps.validate.methods import merge_methods, parameter_names, shared_parameters
from mcp_server.steps.validate.registry import Found, check

PLACEHOLDER: Final = re.compile(r"^<.*>$|^\.\.\.$|^…$|path/to/|^your[-_/]|^YOUR_")

OTHER_WORDS: Final = {
    "lora": ("An adapter is named together with its model.", "write model: MODEL+ADAPTER"),
    "adapter": ("An adapter is named together with its model.", "write model: MODEL+ADAPTER"),
    "revision": ("A revision is named together with its model.", "write model: MODEL@REVISION"),
}
"""Keys beside a model that would say something if mergekit read them."""
WINDOWS: Final = re.compile(r"^[A-Za-z]:[\\/]|\\")


@dataclass(frozen=True, slots=True)
class Key:
    """A key that mergekit will not read where it stands. `belongs` says where it would be read, if anywhere."""

    path: Path
    known: Sequence[str]
    belongs: Literal["parameters", "top", "shared", ""]

    @property
    def name(self) -> str:
        return str(self.path[-1])

    @property
    def where(self) -> str:
        return dotted(self.path)


def unread_keys(context: Context) -> Iterator[Key]:
    """Every key that mergekit does not read at its place, in the order of the text."""
    mixture = context.recipe.kind == "moe" or is_moe_in_disguise(context.document)
    for table in tables(context.document, mixture=mixture, homes=context.homes):
        yield from _parameters(table, context) if table.level == "parameters" else _keys(table, context)


def _keys(table: Table, context: Context) -> Iterator[Key]:
    for name in table.unread():
        if is_idle(name, table, context.recipe):
            continue
        if "parameters" in table.known and name in parameter_names():
            belongs: Literal["parameters", "top", ""] = "parameters"
        else:
            elsewhere = table.path and name in keys.TOP and name not in ("models", "slices", "modules")
            belongs = "top" if elsewhere else ""
        yield Key((*table.path, name), table.known, belongs)


def _parameters(table: Table, context: Context) -> Iterator[Key]:
    """Keys among a method's parameters that are none, or that count only for the whole merge."""
    shared = {p.name for p in shared_parameters(context.method)} if context.method else set()
    under_a_model = table.path[-3:-2] in (("models",), ("sources",))
    for name in map(str, table.content):
        if name in keys.TOP and name not in parameter_names():
            yield Key((*table.path, name), sorted(parameter_names()), "top")
        elif name in shared and under_a_model:
            yield Key((*table.path, name), sorted(parameter_names()), "shared")


@check("MM103")
def unknown_key(context: Context) -> Iterator[Found]:
    for key in unread_keys(context):
        if not key.belongs:
            if len(key.path) > 1 and (other := OTHER_WORDS.get(key.name)):
                yield Found(f"{key.name!r} is not a key that mergekit reads here; it is ignored. {other[0]}", key.where, other[1])
                continue
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


@check("MM118")
def path_of_windows(context: Context) -> Iterator[Found]:
    for where, ref in context.named():
        for part in (ref.base, ref.adapter):
            if part and WINDOWS.search(part) and not (context.folder / part).exists():
                drive, _, rest = part.replace("\\", "/").partition(":/")
                here = f"/mnt/{drive.lower()}/{rest}" if rest else drive
                yield Found(
                    f"{part!r} is a path of Windows, which means nothing on this system", where, f"under WSL write {here}"
                )


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
    """The known name that a misspelt one surely means, or None.

    Plain misspellings only: other case or separators, or, in a word of at least four letters that begins alike, one letter
    missing, doubled, exchanged or swapped with its neighbour. A digit or a prefix makes another name (`ties2`, `lerp`), and
    nothing is chosen between two names.
    """
    word = _bare(name)
    same = [other for other in known if _bare(other) == word]
    if same or len(word) < 4:
        return same[0] if len(same) == 1 else None
    near = [other for other in known if _one_slip(word, _bare(other))]
    return near[0] if len(near) == 1 else None


def _bare(name: str) -> str:
    return re.sub(r"[-_ .]", "", name.lower())


def _one_slip(a: str, b: str) -> bool:
    """Whether one letter was left out, added, exchanged or swapped with its neighbour; the first letter and digits agree."""
    if a[:1] != b[:1] or abs(len(a) - len(b)) > 1 or re.sub(r"\D", "", a) != re.sub(r"\D", "", b):
        return False
    start = next((n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    rests = (
        (a[start + 1 :], b[start + 1 :]),
        (a[start + 1 :], b[start:]),
        (a[start:], b[start + 1 :]),
        (a[start + 1 : start + 2] + a[start : start + 1] + a[start + 2 :], b[start:]),
    )
    return any(x == y for x, y in rests)
