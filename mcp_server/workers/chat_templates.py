"""The texts of the chat templates that recipes name: mergekit's own, read from its package without importing it."""

from __future__ import annotations

from importlib.metadata import distribution
from pathlib import Path

from mcp_server.errors import NotFound
from mcp_server.formats.chat_template import AUTO, is_name
from mcp_server.formats.recipe import merge_recipe

_FOLDER = "mergekit/_data/chat_templates"
"""In mergekit 0.1.5, whose `_set_chat_template` reads `NAME.jinja` of it."""


def named_template(recipe: str) -> str | None:
    """The text of the template that a recipe names; None where it names none, or lets the models decide (`auto`)."""
    name = merge_recipe(recipe).chat_template
    if not name or not is_name(name) or name == AUTO:
        return None
    path = Path(str(distribution("mergekit").locate_file(f"{_FOLDER}/{Path(name).name}.jinja")))
    if not path.is_file():
        raise NotFound(f"mergekit has no chat template named {name!r}: {path} does not exist", "give the template's text")
    return path.read_text(encoding="utf-8")
