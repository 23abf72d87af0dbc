"""Parameters of the method: their names, and shares that were written in per cent."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mcp_server.catalog.models import Parameter
from mcp_server.formats.recipe import keys
from mcp_server.formats.recipe.keys import dotted
from mcp_server.steps.validate.context import Context
from mcp_server.steps.validate.fixes.editing import parameter_tables
from mcp_server.steps.validate.fixes.registry import fixes
from mcp_server.steps.validate.form import nearest
from mcp_server.steps.validate.methods import parameter_names
from mcp_server.steps.validate.parameters import per_cent, typed


@fixes("MM205")
def correct_names(context: Context) -> Iterator[str]:
    mine = [p.name for p in context.method.parameters] if context.method else []
    for path, table in parameter_tables(context.document):
        for name in map(str, list(table)):
            near = None if name in parameter_names() or name in keys.TOP else nearest(name, mine)
            # A list under `weights` is one value per model to its author, and a gradient over the layers under `weight`.
            if near and near not in table and name in table and not (near + "s" == name and isinstance(table[name], list)):
                table[near] = table.pop(name)
                yield f"{dotted((*path, name))}: renamed to {near}"


@fixes("MM207")
def shares_not_per_cent(context: Context) -> Iterator[str]:
    for path, table in parameter_tables(context.document):
        for name, setting in list(table.items()):
            parameter = context.method.parameter(str(name)) if context.method else None
            if parameter is not None and (share := _as_share(parameter, setting)) is not None:
                table[name] = share
                yield f"{dotted((*path, name))}: {setting} → {share} (per cent)"


def _as_share(parameter: Parameter, setting: Any) -> Any:
    """The setting with every number divided by 100; None unless each is either a per cent or 0, so that nothing is mixed."""
    values = setting if isinstance(setting, list) else [setting]
    shares = [0 if value == 0 and type(value) in (int, float) else per_cent(parameter, value) for value in values]
    if None in shares or not any(parameter.problem(typed(parameter, value)) for value in values):
        return None
    return shares if isinstance(setting, list) else shares[0]
