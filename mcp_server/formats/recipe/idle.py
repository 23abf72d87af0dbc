"""Keys that stand where mergekit reads none, and change nothing by it."""

from __future__ import annotations

from typing import Final

from mcp_server.catalog import load
from mcp_server.formats.recipe.keys import Table
from mcp_server.formats.recipe.settings import as_flag, as_number, is_scalar
from mcp_server.formats.recipe.types import Recipe

WITHOUT_EFFECT: Final = ("int8_mask",)
"""Parameters that move no weight, wherever they stand."""


def is_idle(name: str, table: Table, recipe: Recipe) -> bool:
    """Whether a parameter beside `parameters` may be ignored: it moves no weight, or says what holds for all anyway."""
    if "parameters" not in table.known:
        return False
    if name in WITHOUT_EFFECT:
        return True
    strategy = load().strategies.get(recipe.method)
    parameter = strategy.parameter(name) if strategy else None
    if table.level != "top" or parameter is None or parameter.scope != "shared" or not is_scalar(table.content[name]):
        return False
    value = as_flag(table.content[name]) if parameter.type == "bool" else as_number(table.content[name])
    said = any(True for group in recipe.groups() for _ in group.settings(name))
    return value is not None and value == parameter.default and not said
