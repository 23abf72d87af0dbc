"""What pydantic found wrong, in sentences: the one translation that every reader and face uses."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ValidationError

from mcp_server.errors import did_you_mean


def explain(error: ValidationError, model: type[BaseModel]) -> list[str]:
    """A validation error in our words, one line per fault: which field, what is wrong, the value found, what was meant."""
    lines = []
    for fault in error.errors():
        where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in fault["loc"]).lstrip(".")
        if fault["type"] == "extra_forbidden":
            parent, name = fault["loc"][:-1], str(fault["loc"][-1])
            known = fields_at(model, parent)
            lines.append(f"unknown field {where!r}.{did_you_mean(name, known) or ' Known here: ' + ', '.join(known) + '.'}")
        elif fault["type"] == "missing":
            lines.append(f"the field {where!r} is missing")
        else:
            found = str(fault.get("input"))
            shown = "" if isinstance(fault.get("input"), dict | list) else f" (found {found[:80]!r})"
            lines.append(f"{where + ': ' if where else ''}{fault['msg'].removeprefix('Value error, ')}{shown}")
    return lines


def fields_at(model: type[BaseModel], path: tuple[int | str, ...]) -> list[str]:
    """The field names of the model that a validation path leads to (through lists, tables and unions)."""
    current: list[type[BaseModel]] = [model]
    for part in path:
        if isinstance(part, int):
            continue
        following = [f for m in current if (f := m.model_fields.get(str(part)))]
        if following:
            current = [inner for f in following for inner in _models_in(f.annotation)]
    return sorted({name for m in current for name in m.model_fields})


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [inner for argument in getattr(annotation, "__args__", ()) for inner in _models_in(argument)]


def first_fault(error: ValidationError, model: type[BaseModel]) -> str:
    """The first line of `explain`, and how many more there are."""
    lines = explain(error, model)
    return lines[0] + (f" (and {len(lines) - 1} more)" if len(lines) > 1 else "")
