"""The value of a parameter for one tensor, as a number or a flag.

`settings` decides as mergekit 0.1.5 does (its `config.evaluate_setting` and `parameter_resolver`): a value is looked up at
the source, then the slice, then the recipe; a filter matches when its text occurs in the tensor's name; a gradient is
interpolated over the layers of its slice, and tensors outside the layers (embeddings, final norm, head) take its first value.
Shared parameters see the output's tensor name, per-source parameters the source's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal

from mcp_server.errors import Malformed
from mcp_server.formats.recipe import settings as written

Kind = Literal["number", "flag"]
REQUIRED = object()

_LIKE: dict[Kind, str] = {"number": "write a number such as 0.5", "flag": "write true or false"}


def as_number(value: object) -> float:
    """Raises `ValueError` for anything but a number."""
    number = written.as_number(value)
    if number is None:
        raise ValueError(f"{value!r}, which is not a number")
    return number


def as_flag(value: object) -> bool:
    """Raises `ValueError` for anything that is neither true nor false."""
    flag = written.as_flag(value)
    if flag is None:
        raise ValueError(f"{value!r}, neither true nor false")
    return flag


_CONVERT: dict[Kind, Callable[[object], Any]] = {"number": as_number, "flag": as_flag}


def has_gradient(settings: Iterable[Any], tensor: str) -> bool | None:
    """None when the value of this tensor is no gradient; else whether it is one for every tensor, not filtered to this one."""
    for setting in settings:
        if written.is_gradient(setting):
            return len(setting) > 1
        for entry in (setting if isinstance(setting, list) else [setting]) if written.is_filters(setting) else ():
            wanted = entry.get("filter")
            if wanted in (None, "*") or str(wanted) in tensor:
                return wanted in (None, "*") if written.is_gradient(entry["value"]) else None
        if not written.is_filters(setting):
            return None
    return None


def resolve(name: str, settings: Iterable[Any], tensor: str, t: float, kind: Kind, default: Any, whose: str) -> Any:
    """The first value among `settings`, strongest place first, at gradient position `t` in [0, 1]; else the default.

    Raises `Malformed` for a value of another kind, and when nothing is given and `default` is `REQUIRED`.
    """
    try:
        value = written.resolve(settings, tensor, t, default, _CONVERT[kind])
    except ValueError as wrong:
        raise Malformed(f"{name} of {whose} is {wrong}", _LIKE[kind]) from wrong
    if value is REQUIRED:
        raise Malformed(f"no {name} is given for {whose} at {tensor}", f"add `parameters: {{{name}: …}}` to that model")
    return value
