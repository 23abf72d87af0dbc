"""Finding and replacing values of a raw document by their path."""

from __future__ import annotations

from typing import Any

from mcp_server.errors import Malformed
from mcp_server.formats.recipe import ModelRef, parse_ref
from mcp_server.formats.recipe.keys import Path, tables


def follow(document: Any, path: Path) -> Any:
    """The value at a path, or None where the document has another form."""
    for part in path:
        if isinstance(document, dict):
            document = document.get(part)
        elif isinstance(document, list) and isinstance(part, int) and part < len(document):
            document = document[part]
        else:
            return None
    return document


def put(document: Any, path: Path, value: Any) -> None:
    if isinstance(parent := follow(document, path[:-1]), dict):
        parent[path[-1]] = value


def own_parameters(table: dict[str, Any]) -> Any:
    """The table's 'parameters', made where there are none; `parameters:` with nothing behind it reads as null."""
    if table.get("parameters") is None:
        table["parameters"] = {}
    return table["parameters"]


def parameter_tables(document: Any) -> list[tuple[Path, dict[Any, Any]]]:
    """Every 'parameters' table of the document, with its path."""
    return [(table.path, table.content) for table in tables(document) if table.level == "parameters"]


def model_names(document: dict[str, Any]) -> list[tuple[Path, str]]:
    """Every model name in text form that can be parsed, with its path; base_model first, so that adapters find it."""
    found: list[tuple[Path, str]] = []

    def look(value: Any, path: Path) -> None:
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
    parseable = [entry for entry in found if readable(entry[1])]
    return sorted(parseable, key=lambda entry: entry[0][-1] != "base_model")


def readable(name: str) -> ModelRef | None:
    """The model reference that a text stands for, or None when it is none."""
    try:
        return parse_ref(name)
    except Malformed:
        return None
