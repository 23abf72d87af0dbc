"""Parameters of the method: their names, their values, and those that it requires."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mcp_server.formats.recipe import keys
from mcp_server.formats.recipe.keys import dotted
from mcp_server.formats.recipe.settings import is_scalar
from mcp_server.steps.validate.context import Context
from mcp_server.steps.validate.fixes.editing import own_parameters, parameter_tables
from mcp_server.steps.validate.fixes.registry import fixes
from mcp_server.steps.validate.form import nearest
from mcp_server.steps.validate.methods import parameter_names


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
        if not isinstance(parameters := own_parameters(context.document), dict):
            continue
        parameters[parameter.name] = value
        yield f"parameters.{parameter.name}: {value} added (it is required)"


def _equal_share(context: Context) -> float:
    """1 where weights are normalised or summed as deltas of one source; equal shares otherwise."""
    method, groups = context.method, context.recipe.groups()
    count = max((len(group.others) for group in groups), default=1)
    if method is None or method.weights == "whole" or method.parameter("normalize") is not None:
        return 1.0
    return round(1 / max(1, count), 4)


@fixes("MM216")
def lower_epsilon(context: Context) -> Iterator[str]:
    parameters = own_parameters(context.document)
    groups = context.recipe.groups()
    densities = [d for g in groups for s in g.others for d in g.settings("density", s)][:100]
    numbers = [float(d) for d in densities if isinstance(d, (int, float)) and 0 < d < 1]
    own = any("epsilon" in source.parameters for _, source in context.sources())
    if isinstance(parameters, dict) and numbers and len(numbers) == len(densities) and not own:
        value = round(0.9 * min(min(d, 1 - d) for d in numbers), 4)
        parameters["epsilon"] = value
        yield f"parameters.epsilon: {value} (density ± epsilon must stay inside (0, 1))"
