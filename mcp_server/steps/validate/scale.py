"""MM220: how large the sources' changes go in, one by one and in sum."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mcp_server.catalog import Strategy, load
from mcp_server.formats.recipe import Group, Source
from mcp_server.steps.validate.context import Context
from mcp_server.steps.validate.layers import positions
from mcp_server.steps.validate.methods import ignores_base, shared_parameters
from mcp_server.steps.validate.registry import Found, check
from mcp_server.steps.validate.weights import normalises, number_at


@check("MM220")
def changes_beyond_their_size(context: Context) -> Iterator[Found]:
    method = context.known_method()
    if method.parameter("weight") is None or not (method.deltas != "none" or _switch(method)):
        return
    limit = load().threshold("scale_limit")
    for group in context.recipe.groups():
        inputs = group.sources if ignores_base(method) else group.others
        worst: dict[str, float] = {}
        total = 0.0
        for tensor in _filters(group, inputs):
            for t in positions(context, group, "weight", "lambda"):
                scales = _scales(method, group, inputs, tensor, t)
                # One source alone may have changed an entry: where signs are elected, it then goes in whole.
                total = max(total, max(scales.values(), default=0.0) if _elects(method, group) else sum(scales.values()))
                worst = {name: max(scale, worst.get(name, 0.0)) for name, scale in scales.items()}
        loud = {name: scale for name, scale in worst.items() if scale > limit}
        if not loud and total <= max(limit, len(inputs)):
            continue
        shown = ", ".join(f"{name} {scale:.3g} times" for name, scale in list((loud or worst).items())[:3])
        more = f" and {len(loud or worst) - 3} more" if len(loud or worst) > 3 else ""
        each = "lambda × weight" if method.parameter("lambda") else "weight"
        text = f"the scale ({each}) is beyond {limit:g}: {shown}{more}; {total:.3g} times a source's change in sum"
        yield Found(text, group.where)


def _scales(method: Strategy, group: Group, inputs: tuple[Source, ...], tensor: str, t: float) -> dict[str, float]:
    """How many times each source's change goes into this tensor. Sources without a known weight are left out."""
    found = {str(source.model): number_at(group, "weight", source, t, tensor) for source in inputs}
    weights = {name: weight for name, weight in found.items() if weight is not None}
    parameter = method.parameter("lambda")
    scale = (
        abs((number_at(group, "lambda", None, t, tensor, parameter.default) if parameter else None) or 0.0) if parameter else 1.0
    )
    if not normalises(method, group, t, tensor):
        return {name: scale * abs(weight) for name, weight in weights.items()}
    if _elects(method, group):
        return {name: scale if weight else 0.0 for name, weight in weights.items()}
    total = abs(sum(weights.values()))
    return {name: scale * abs(weight) / total for name, weight in weights.items()} if total > 1e-8 else {}


def _elects(method: Strategy, group: Group) -> bool:
    return method.deltas == "elected" and normalises(method, group)


def _switch(method: Strategy) -> bool:
    """Whether the method can be told not to divide by the sum of the weights: then they scale what it gives."""
    return any(parameter.name in ("normalize", "normalize_weights") for parameter in shared_parameters(method))


def _filters(group: Group, inputs: tuple[Source, ...]) -> list[str]:
    """One tensor name for each filter that a weight or lambda has, and one that matches none."""
    settings: list[Any] = [setting for source in inputs for setting in group.settings("weight", source)]
    settings += group.settings("lambda")
    entries = (entry for setting in settings for entry in (setting if isinstance(setting, list) else [setting]))
    return ["", *dict.fromkeys(str(e["filter"]) for e in entries if isinstance(e, dict) and e.get("filter") not in (None, "*"))]
