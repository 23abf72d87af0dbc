"""Which recipes this engine does, and why not the others. Imports no numpy: the server asks this before any job starts."""

from __future__ import annotations

from mcp_server.engine.plan import make_plan
from mcp_server.engine.signatures import SIGNATURES
from mcp_server.engine.sources import Source, open_sources
from mcp_server.errors import MergingError, Unsupported
from mcp_server.formats.identity import token_ids
from mcp_server.formats.recipe import ModelRef, Recipe, merge_recipe

_ELSEWHERE = "use --engine mergekit"


def covers(recipe: str | Recipe, *, headers: bool = True) -> list[str]:
    """Reasons why this engine cannot do a recipe; empty when it can.

    With `headers`, models that are here are looked into as well (stacks of layers, dtypes, vocabularies). A recipe that is wrong
    for every engine raises what is wrong with it.
    """
    try:
        parsed = merge_recipe(recipe) if isinstance(recipe, str) else recipe
        reasons = _from_text(parsed)
        if headers and not reasons:
            sources = open_sources(parsed)
            reasons += _from_tokenizers(parsed, sources)
            if not reasons:
                make_plan(parsed, sources)
    except Unsupported as error:
        return [error.message]
    return reasons


def require_coverage(recipe: Recipe) -> None:
    """Raise `Unsupported` with the reasons, unless this engine does the recipe."""
    if reasons := _from_text(recipe):
        raise Unsupported("; ".join(reasons), _ELSEWHERE)
    if reasons := _from_tokenizers(recipe, open_sources(recipe) if recipe.tokenizer_from else {}):
        raise Unsupported("; ".join(reasons), _ELSEWHERE)


def _from_text(recipe: Recipe) -> list[str]:
    reasons = []
    if recipe.method not in SIGNATURES:
        reasons.append(f"merge_method {recipe.method} is not done by this engine")
    if odd := [ref for ref in recipe.references() if ref.override_architecture]:
        reasons.append(f"the override_architecture of {odd[0]} is done by mergekit only")
    if recipe.modules:
        reasons.append("`modules` (models of several parts) is done by mergekit only")
    for name, dtype in (("dtype", recipe.dtype), ("out_dtype", recipe.out_dtype)):
        if dtype not in (None, "bfloat16", "float16", "float32"):
            reasons.append(f"{name} {dtype} is done by mergekit only")
    if (recipe.tokenizer or {}).get("tokens"):
        reasons.append("per-token tokenizer settings are done by mergekit only")
    if (recipe.tokenizer or {}).get("pad_to_multiple_of"):
        reasons.append("padding the vocabulary is done by mergekit only")
    if recipe.tokenizer_from == "union":
        reasons.append("a union of vocabularies is made by mergekit only")
    if recipe.chat_template and "{" not in recipe.chat_template:
        reasons.append(f"the named chat template {recipe.chat_template!r} comes with mergekit only; give the template's text")
    return reasons


def _from_tokenizers(recipe: Recipe, sources: dict[ModelRef, Source]) -> list[str]:
    """A named tokenizer source is a plain copy only while every model numbers its tokens alike."""
    if not recipe.tokenizer_from:
        return []
    known: dict[str, dict[str, int] | None] = {}
    for ref, source in sources.items():
        try:
            known[str(ref)] = token_ids(source.checkpoint.folder)
        except MergingError:
            known[str(ref)] = None
    if None in known.values():
        missing = next(ref for ref, vocabulary in known.items() if vocabulary is None)
        return [f"{missing} has no readable tokenizer.json, so its vocabulary cannot be compared"]
    first, *others = known.items()
    return [f"{ref} and {first[0]} number their tokens differently" for ref, vocabulary in others if vocabulary != first[1]]
