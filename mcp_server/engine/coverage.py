"""Which recipes this engine does, and why not the others. Imports no numpy: the server asks this before any job starts."""

from __future__ import annotations

from mcp_server.engine.plan import make_plan
from mcp_server.engine.signatures import SIGNATURES
from mcp_server.engine.sources import open_sources
from mcp_server.errors import Malformed, Unsupported, did_you_mean
from mcp_server.formats.chat_template import is_name
from mcp_server.formats.checkpoint import tensors_of
from mcp_server.formats.recipe import Recipe, merge_recipe
from mcp_server.formats.recipe.keys import CHAT_TEMPLATES
from mcp_server.schemas.limits import MAX_PLANNED

_ELSEWHERE = "use --engine mergekit"


def covers(recipe: str | Recipe, *, headers: bool = True) -> list[str]:
    """Reasons why this engine cannot do a recipe; empty when it can.

    With `headers`, models that are here are looked into as well (stacks of layers, dtypes, vocabularies), unless they have more
    than `MAX_PLANNED` tensors. A recipe that is wrong for every engine raises what is wrong with it.
    """
    try:
        parsed = merge_recipe(recipe) if isinstance(recipe, str) else recipe
        reasons = _from_text(parsed)
        if headers and not reasons:
            sources = open_sources(parsed)
            if tensors_of(source.checkpoint for source in sources.values()) <= MAX_PLANNED:
                make_plan(parsed, sources)
    except Unsupported as error:
        return [error.message]
    return reasons


def require_coverage(recipe: Recipe) -> None:
    """Raise `Unsupported` with the reasons, unless this engine does the recipe."""
    if reasons := _from_text(recipe):
        raise Unsupported("; ".join(reasons), _ELSEWHERE)


def _from_text(recipe: Recipe) -> list[str]:
    reasons = []
    if recipe.method not in SIGNATURES:
        reasons.append(f"merge_method {recipe.method} is not done by this engine")
    if odd := [ref for ref in recipe.references() if ref.override_architecture]:
        reasons.append(f"the override_architecture of {odd[0]} is done by mergekit only")
    if recipe.in_parts:
        reasons.append("`modules` (models of several parts) is done by mergekit only")
    for name, dtype in (("dtype", recipe.dtype), ("out_dtype", recipe.out_dtype)):
        if dtype not in (None, "bfloat16", "float16", "float32"):
            reasons.append(f"{name} {dtype} is done by mergekit only")
    if recipe.chat_template and is_name(recipe.chat_template) and recipe.chat_template not in CHAT_TEMPLATES:
        known = did_you_mean(recipe.chat_template, CHAT_TEMPLATES) or f" Known: {', '.join(CHAT_TEMPLATES)}."
        raise Malformed(f"there is no chat template named {recipe.chat_template!r}.{known}", "name one of them, or give the text")
    return reasons
