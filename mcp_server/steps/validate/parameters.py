"""MM2xx: the method's parameters: their names, their values, and those that it requires."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final

from mcp_server.catalog import Strategy
from mcp_server.catalog.models import Parameter
from mcp_server.errors import did_you_mean
from mcp_server.formats.recipe import KEEPS_TIES, Group, Source, as_flag, as_number, has_fallback, scalars
from mcp_server.formats.recipe.idle import is_idle
from mcp_server.formats.recipe.keys import OWN, TOP, dotted, tables
from mcp_server.steps.validate.context import Context
from mcp_server.steps.validate.methods import ignores_base, merge_methods, parameter_names
from mcp_server.steps.validate.registry import Found, check

SHARES: Final = ("density", "t")
"""Parameters between 0 and 1 that people also give in per cent."""


@check("MM204")
def required_parameters(context: Context) -> Iterator[Found]:
    method = context.known_method()
    for parameter in (p for p in method.parameters if p.required):
        for group in context.recipe.groups():
            if parameter.scope == "shared":
                yield from _required(parameter, group, None, method)
                continue
            for source in group.sources:
                if ignores_base(method) or source.model != group.base:
                    yield from _required(parameter, group, source, method)


def _required(parameter: Parameter, group: Group, source: Source | None, method: Strategy) -> Iterator[Found]:
    settings = [setting for setting in group.settings(parameter.name, source) if setting is not None]
    if any(has_fallback(setting) for setting in settings):
        return
    subject = f"{source.model}" if source else "the recipe"
    if source and group.base_added and source.model == group.base:
        return  # MM209 says that this input should not be there at all
    if settings:
        text = f"{subject} has {parameter.name} only for tensors that match a filter; {method.id} needs it for all"
        yield Found(text, group.where, "add a last entry without filter: '- value: …'")
    else:
        place = "its parameters, or the recipe's" if source else "the recipe's parameters"
        yield Found(
            f"{subject} has no {parameter.name}, which {method.id} requires", group.where, f"add {parameter.name} under {place}"
        )


@check("MM205")
def unknown_parameter(context: Context) -> Iterator[Found]:
    for where, name, _ in all_parameters(context):
        if name not in parameter_names() and name not in (*TOP, KEEPS_TIES) and not name.startswith(OWN):
            mine = [p.name for p in context.method.parameters] if context.method else []
            hint = did_you_mean(name, mine) or did_you_mean(name, parameter_names())
            known = f" {context.method.id} reads {', '.join(mine) or 'none'}." if context.method else ""
            yield Found(f"no method has a parameter {name!r}; it is ignored.{hint or known}", where)


@check("MM206")
def unread_parameter(context: Context) -> Iterator[Found]:
    method = context.known_method()
    mine = {parameter.name for parameter in method.parameters}
    for where, name, _ in all_parameters(context):
        if name in parameter_names() and name not in mine:
            users = ", ".join(sorted(n for n, s in merge_methods().items() if s.parameter(name)))
            yield Found(f"{method.id} does not read {name!r} (it belongs to {users}); it has no effect", where)
    for table in tables(context.document, homes=context.homes):
        for name in table.unread():
            if is_idle(name, table, context.recipe):
                yield Found(f"{name!r} is not read beside 'parameters'; here that changes nothing", dotted((*table.path, name)))


@check("MM207")
def legal_values(context: Context) -> Iterator[Found]:
    method = context.known_method()
    for where, name, setting in all_parameters(context):
        parameter = method.parameter(name)
        if name == KEEPS_TIES and (isinstance(setting, (list, dict)) or as_flag(setting) is None):
            yield Found(
                f"{name} {setting!r} is neither true nor false", where, "write true or false; it holds for the whole source"
            )
        for value in scalars(setting) if parameter else ():
            if parameter and (problem := parameter.problem(typed(parameter, value))):
                if (share := per_cent(parameter, value)) is not None:
                    yield Found(
                        f"{name} {problem}; {100 * share:g} % is written {share:g}",
                        where,
                        f"write {share:g}, if per cent is meant",
                    )
                    continue
                start = f"; try {parameter.start if parameter.start is not None else parameter.default}"
                usual = start if parameter.start is not None or parameter.default is not None else ""
                yield Found(f"{name} {problem}{usual}", where)


def per_cent(parameter: Parameter, value: Any) -> float | None:
    """The share that a whole number from 2 to 100, or a number with %, stands for where a share of at most 1 is asked for."""
    shares = parameter.name in SHARES
    if shares and isinstance(value, str) and (found := re.fullmatch(r"(\d{1,2}(?:\.\d+)?|100)\s*%", value.strip())):
        return float(found[1]) / 100
    return value / 100 if shares and type(value) in (int, float) and 2 <= value <= 100 and value == int(value) else None


def all_parameters(context: Context) -> Iterator[tuple[str, str, Any]]:
    """Every parameter of the recipe: where, name, setting."""
    for table in tables(context.document):
        for name, setting in table.content.items() if table.level == "parameters" else ():
            yield dotted((*table.path, name)), str(name), setting


def typed(parameter: Parameter, value: Any) -> Any:
    """A scalar as mergekit reads it for this parameter: '1e-5' is a number, 1.0 can be true. What it refuses stays as it is."""
    read = as_flag(value) if parameter.type == "bool" else as_number(value) if parameter.type in ("float", "int") else value
    return value if read is None else read
