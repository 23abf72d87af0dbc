"""The parameter language of recipes: scalars, gradients, filters, and which of several places wins.

Follows mergekit 0.1.5 to the letter (its `config.evaluate_setting` and `parameter_resolver`): a value is looked up at the source,
then the slice, then the recipe; a filter matches when its text occurs in the tensor's name; a gradient is interpolated over the
layers of its slice, and tensors outside the layers (embeddings, final norm, head) take its first value. Shared parameters see the
output's tensor name, per-source parameters the source's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

from mcp_server.core.errors import Malformed
from mcp_server.engine.recipe import OutputSlice, Recipe, Settings

Kind = Literal["number", "flag"]
REQUIRED = object()

_TRUE, _FALSE = {"true", "yes", "on", "1", "t", "y"}, {"false", "no", "off", "0", "f", "n"}


def as_number(value: object) -> float:
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        raise Malformed(f"{value!r} is not a number", "write a number such as 0.5") from error


def as_flag(value: object) -> bool:
    if isinstance(value, bool):
        return value
    word = str(int(value) if isinstance(value, float) and value.is_integer() else value).lower()
    if word in _TRUE or word in _FALSE:
        return word in _TRUE
    raise Malformed(f"{value!r} is neither true nor false", "write true or false")


_CONVERT: dict[Kind, Callable[[object], Any]] = {"number": as_number, "flag": as_flag}


def evaluate(setting: Any, tensor_name: str, t: float, kind: Kind) -> Any:
    """The value that `setting` has for one tensor at gradient position t in [0, 1]; None when no filter matches."""
    convert = _CONVERT[kind]
    if isinstance(setting, Mapping):
        setting = [setting]
    if not isinstance(setting, list):
        return convert(setting)
    if not setting:
        return None
    if all(isinstance(entry, Mapping) for entry in setting):
        for entry in setting:
            if unknown := set(entry) - {"value", "filter"} or "value" not in entry:
                raise Malformed(f"a conditional value has {unknown or 'no value'!r}", "write {filter: self_attn, value: 0.5}")
            pattern = entry.get("filter")
            if pattern is None or pattern == "*" or (tensor_name and pattern in tensor_name):
                return evaluate(entry["value"], tensor_name, t, kind)
        return None
    if any(isinstance(entry, Mapping | list) for entry in setting):
        raise Malformed(f"{setting!r} mixes plain and conditional values", "use either a gradient or a list of filters")
    values = [convert(entry) for entry in setting]
    if kind == "flag":
        return values[int(t * (len(values) - 1))]
    scaled = t * (len(values) - 1)
    low = int(scaled)
    high = min(len(values) - 1, low + 1)
    fraction = scaled - low
    return (1 - fraction) * values[low] + fraction * values[high]


def resolve(name: str, places: Iterable[Settings], tensor_name: str, t: float, kind: Kind, default: Any, whose: str) -> Any:
    """The first value found, from the strongest place to the weakest, else the default."""
    for place in places:
        if name in place and place[name] is not None:
            value = evaluate(place[name], tensor_name, t, kind)
            if value is not None:
                return value
    if default is REQUIRED:
        raise Malformed(f"no {name} is given for {whose} at {tensor_name}", f"add `parameters: {{{name}: …}}` to that model")
    return default


def shared_places(recipe: Recipe, part: OutputSlice) -> tuple[Settings, ...]:
    return (part.parameters, recipe.parameters)


def source_places(recipe: Recipe, part: OutputSlice, source: Settings) -> tuple[Settings, ...]:
    return (source, part.parameters, recipe.parameters)
