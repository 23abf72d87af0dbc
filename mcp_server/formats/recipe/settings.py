"""Evaluate a parameter setting the way mergekit does: scalar, gradient over the layers, or a list of filters.

    0.5                                              the same everywhere
    [0, 0.5, 1]                                      a gradient: interpolated over the layers of the output slice
    [{filter: mlp, value: 0.7}, {value: 0.5}]        the first entry whose filter is part of the tensor's name

Source: mergekit 0.1.5, `config.evaluate_setting` and `parameter_resolver.resolve_parameter`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

SCALARS = (bool, int, float, str)
MISSING: Any = object()


def is_scalar(value: object) -> bool:
    return isinstance(value, SCALARS)


def is_gradient(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(is_scalar(item) for item in value)


def is_filters(value: object) -> bool:
    entries = value if isinstance(value, list) else [value]
    return bool(entries) and all(isinstance(entry, dict) and "value" in entry for entry in entries)


def scalars(setting: Any) -> Iterator[Any]:
    """Every scalar inside a setting, whatever its form."""
    if is_scalar(setting):
        yield setting
    elif isinstance(setting, dict):
        yield from scalars(setting.get("value"))
    elif isinstance(setting, list):
        for item in setting:
            yield from scalars(item)


def filters_of(setting: Any) -> Iterator[str]:
    """Every text that a filter of the setting looks for in tensors' names, at any depth."""
    for entry in setting if isinstance(setting, list) else [setting]:
        if isinstance(entry, dict):
            if (wanted := entry.get("filter")) not in (None, "*"):
                yield str(wanted)
            yield from filters_of(entry.get("value"))


def has_fallback(setting: Any) -> bool:
    """Whether the setting gives a value for every tensor: filters do so only with an entry that matches all."""
    if not is_filters(setting):
        return setting is not None and setting != []
    entries = setting if isinstance(setting, list) else [setting]
    return any(entry.get("filter") in (None, "*") and has_fallback(entry["value"]) for entry in entries)


def as_number(value: Any) -> float | None:
    """A scalar as mergekit reads it for a numeric parameter: YAML 1.1 leaves `1e-5` a string, which still counts."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


_FLAGS = {word: truth for truth, words in ((True, "true yes on 1 t y"), (False, "false no off 0 f n")) for word in words.split()}


def as_flag(value: Any) -> bool | None:
    """A scalar as mergekit reads it for a parameter that is true or false, or None where it refuses.

    1 and 0 count in every spelling, 1.0 and 0.0 too: mergekit itself writes them so.
    """
    return _FLAGS.get(str(int(value) if isinstance(value, float) and value.is_integer() else value).lower())


def as_written(value: Any) -> Any:
    """A scalar whose parameter's type is not known: numbers stay numbers, in quotes or not; true, false and words stay too."""
    number = None if isinstance(value, bool) else as_number(value)
    return value if number is None else number


def evaluate(setting: Any, tensor: str, t: float = 0.0, convert: Callable[[Any], Any] = as_written) -> Any:
    """The value for one tensor at position `t` in [0, 1] of its slice, or `MISSING` when no filter matches.

    `convert` gives each scalar the parameter's type. Numbers are interpolated between, everything else is chosen.
    """
    if is_gradient(setting):
        return _at([convert(value) for value in setting], t)
    if is_filters(setting):
        for entry in setting if isinstance(setting, list) else [setting]:
            wanted = entry.get("filter")
            if wanted in (None, "*") or str(wanted) in tensor:
                return evaluate(entry["value"], tensor, t, convert)
        return MISSING
    return convert(setting) if is_scalar(setting) else MISSING


def resolve(
    settings: Iterable[Any], tensor: str, t: float = 0.0, default: Any = MISSING, convert: Callable[[Any], Any] = as_written
) -> Any:
    """The first of `settings` (nearest scope first) that has a value for this tensor, else `default` as it is."""
    for setting in settings:
        value = evaluate(setting, tensor, t, convert)
        if value is not MISSING:
            return value
    return default


def _at(values: list[Any], t: float) -> Any:
    position = t * (len(values) - 1)
    low = int(position)
    if not all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values):
        return values[low]
    high = min(len(values) - 1, low + 1)
    share = position - low
    return (1 - share) * values[low] + share * values[high]
