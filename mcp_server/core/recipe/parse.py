"""Recipe text → `Recipe`. What mergekit's own reader refuses is refused here, in one pass that reports all of it.

Unknown keys are refused only where that is asked for, because mergekit ignores them: the linter reports them, the streaming
engine wants none. `read_recipe` raises the first problem; `parse_document` returns them all, for the linter.
"""

from __future__ import annotations

from typing import Any

from mcp_server.core.errors import Malformed, did_you_mean
from mcp_server.core.recipe.reader import Problem, Reader, short, which
from mcp_server.core.recipe.tables import dotted, tables
from mcp_server.core.recipe.types import Recipe, RecipeKind
from mcp_server.core.yaml_io import load_yaml_all

NEXT = "see `model-merging validate` for every finding"


def kind_of(document: dict[str, Any]) -> RecipeKind:
    """Experts make a mixture; everything else is a merge. (`merge_method: moe` is refused by the linter, not guessed away.)"""
    return "moe" if "experts" in document and "merge_method" not in document else "merge"


def parse_document(document: Any, text: str = "", what: str = "the recipe") -> tuple[Recipe, list[Problem]]:
    """One YAML document → recipe and problems. The recipe holds what could be read."""
    reader = Reader()
    if not isinstance(document, dict):
        found = "empty" if document is None else f"{short(document)}, not a table of names and values"
        reader.refuse("MM101", f"{what} is {found}", "", "write at least merge_method and models")
        return Recipe(text=text), reader.problems
    table = reader.table(document, what)
    recipe = _moe(reader, table, text) if kind_of(table) == "moe" else _merge(reader, table, text)
    return recipe, reader.problems


def _merge(reader: Reader, table: dict[str, Any], text: str) -> Recipe:
    method = reader.text(table.get("merge_method"), "merge_method")
    if not method and "merge_method" not in [p.where for p in reader.problems]:
        reader.refuse("MM106", "the recipe has no merge_method", "merge_method", "add one, such as 'merge_method: linear'")
    forms = [name for name in ("models", "slices", "modules") if table.get(name)]
    if len(forms) != 1:
        found = which(table, ("models", "slices", "modules"))
        fix = "list the inputs under 'models:'" if not forms else f"keep one of {' and '.join(forms)}"
        reader.refuse("MM105", f"exactly one of models, slices and modules must be present; the recipe has {found}", "", fix)
    tokenizer = table.get("tokenizer")
    tokenizer_source = table.get("tokenizer_source")
    if isinstance(tokenizer_source, dict):
        tokenizer_source = str(reader.ref(tokenizer_source, "tokenizer_source") or "")
    if tokenizer and tokenizer_source:
        reader.refuse("MM112", "tokenizer and tokenizer_source are both given", "tokenizer_source", "keep 'tokenizer:'")
    return Recipe(
        method=method,
        name=reader.text(table.get("name"), "name"),
        base=reader.ref(table["base_model"], "base_model") if table.get("base_model") is not None else None,
        models=reader.models(table.get("models"), "models"),
        slices=reader.slices(table.get("slices"), "slices"),
        modules=reader.modules(table.get("modules")),
        parameters=reader.settings(table.get("parameters"), "parameters"),
        dtype=reader.text(table.get("dtype"), "dtype"),
        out_dtype=reader.text(table.get("out_dtype"), "out_dtype"),
        tokenizer_source=reader.text(tokenizer_source, "tokenizer_source"),
        tokenizer=reader.table(tokenizer, "tokenizer") if tokenizer is not None else None,
        chat_template=reader.text(table.get("chat_template"), "chat_template"),
        text=text,
    )


def _moe(reader: Reader, table: dict[str, Any], text: str) -> Recipe:
    if table.get("base_model") is None:
        reader.refuse("MM108", "a mixture of experts needs base_model", "base_model", "name the donor of attention and norms")
    per_token = table.get("experts_per_token", 2)
    if type(per_token) is not int:
        reader.refuse("MM108", f"experts_per_token is {short(per_token)}, not a whole number", "experts_per_token")
        per_token = 2
    return Recipe(
        kind="moe",
        base=reader.ref(table["base_model"], "base_model") if table.get("base_model") is not None else None,
        experts=reader.experts(table.get("experts"), "experts"),
        shared_experts=reader.experts(table.get("shared_experts"), "shared_experts"),
        gate_mode=reader.text(table.get("gate_mode"), "gate_mode") or "hidden",
        experts_per_token=per_token,
        dtype=reader.text(table.get("dtype"), "dtype"),
        architecture=reader.text(table.get("architecture"), "architecture"),
        text=text,
    )


def unread_keys(document: Any) -> list[Problem]:
    """One problem for each key that mergekit would ignore."""
    mixture = isinstance(document, dict) and kind_of(document) == "moe"
    return [
        Problem(
            "MM103",
            f"{dotted(table.path) or 'it'} has the unknown key {name!r}, which mergekit would ignore."
            + (did_you_mean(name, table.known) or f" Known: {', '.join(table.known)}."),
            dotted((*table.path, name)),
            "correct or remove it",
        )
        for table in tables(document, mixture=mixture)
        for name in table.unread()
    ]


def parse_recipe(text: str, what: str = "the recipe", *, unread: bool = False) -> tuple[Recipe, list[Problem]]:
    """Recipe text → recipe and problems, with `unread` also for keys that mergekit ignores; those come first.

    Several documents make a multi-stage recipe. Raises `Malformed` for broken YAML.
    """
    documents = load_yaml_all(text, what)
    ignored = [problem for document in documents for problem in unread_keys(document)] if unread else []
    if len(documents) <= 1:
        recipe, refused = parse_document(documents[0] if documents else None, text, what)
        return recipe, ignored + refused
    stages, problems = [], []
    for number, document in enumerate(documents):
        stage, found = parse_document(document, "", f"stage {number + 1}")
        stages.append(stage)
        problems += [Problem(p.code, p.message, f"stages[{number}].{p.where}".rstrip("."), p.fix) for p in found]
    return Recipe(kind="multi", stages=tuple(stages), text=text), ignored + problems


def read_recipe(text: str, what: str = "the recipe", *, unread: bool = False) -> Recipe:
    """A recipe that mergekit's reader would accept. Raises `Malformed` with the first problem and how many more there are.

    With `unread`, keys that mergekit would ignore are problems too.
    """
    recipe, problems = parse_recipe(text, what, unread=unread)
    if problems:
        first = problems[0]
        more = f" ({len(problems) - 1} more)" if len(problems) > 1 else ""
        raise Malformed(f"{what} cannot be used: {first.message}{more}", first.fix or NEXT, where=first.where, code=first.code)
    return recipe
