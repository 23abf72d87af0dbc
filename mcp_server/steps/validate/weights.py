"""MM2xx: what the weights and densities add up to, over the layers and over the sources."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from mcp_server.catalog import Strategy
from mcp_server.formats.recipe import MISSING, Group, Source, as_number, resolve
from mcp_server.formats.recipe.settings import is_gradient
from mcp_server.steps.validate.context import Context
from mcp_server.steps.validate.methods import ignores_base, needs_base
from mcp_server.steps.validate.registry import Found, check

DOMINATES: Final = 10.0
STEPS: Final = [n / 20 for n in range(21)]
"""Positions at which a gradient over the layers is looked at."""


@check("MM208")
def weights_sum_to_zero(context: Context) -> Iterator[Found]:
    method = context.known_method()
    if method.parameter("weight") is None or needs_base(method):
        return
    for group in context.recipe.groups():
        if not _normalises(method, group):
            continue
        inputs = group.sources if ignores_base(method) else group.others
        for t in STEPS:
            weights = [_number(group, "weight", source, t) for source in inputs]
            if len(weights) > 1 and None not in weights and abs(sum(w for w in weights if w is not None)) < 1e-6:
                shown = ", ".join(f"{w:g}" for w in weights if w is not None)
                yield Found(
                    f"the weights {shown} sum to 0 and {method.id} divides by the sum: every tensor is non-finite", group.where
                )
                break


@check("MM214")
def weights_are_blunted(context: Context) -> Iterator[Found]:
    method = context.known_method()
    if method.inputs.base != "required" or method.parameter("normalize") is None or method.parameter("weight") is None:
        return
    for group in context.recipe.groups()[:1]:
        weights = [_number(group, "weight", source, 0) for source in group.others]
        known = [w for w in weights if w is not None]
        if _normalises(method, group) and len(known) > 1 and min(known) > 0 and max(known) / min(known) >= 1.5:
            shown = " / ".join(f"{w:g}" for w in known)
            yield Found(f"the weights {shown} decide little under {method.id} with normalize on", group.where)


@check("MM217")
def nothing_to_merge(context: Context) -> Iterator[Found]:
    method = context.known_method()
    if not needs_base(method):
        return
    for group in context.recipe.groups():
        if not group.others:
            yield Found(f"beside the base {group.base} there is no model", group.where)
        elif method.parameter("weight"):
            weights = [_number(group, "weight", source, t) for source in group.others for t in STEPS]
            filters = any(
                isinstance(s, (list, dict)) for o in group.others for s in group.settings("weight", o) if not is_gradient(s)
            )
            if not filters and weights and all(weight == 0 for weight in weights):
                yield Found("every weight is 0: the result is the base", group.where)


@check("MM218")
def one_source_dominates(context: Context) -> Iterator[Found]:
    method = context.known_method()
    if method.parameter("weight") is None:
        return
    for group in context.recipe.groups()[:1]:
        inputs = group.sources if ignores_base(method) else group.others
        plain = [s for s in inputs if all(not isinstance(v, (list, dict)) for v in group.settings("weight", s))]
        weights = [abs(w) for source in plain if (w := _number(group, "weight", source, 0))]
        if len(weights) > 1 and max(weights) >= DOMINATES * min(weights):
            yield Found(f"one weight is {max(weights) / min(weights):g} times another", group.where)


@check("MM216")
def density_and_epsilon(context: Context) -> Iterator[Found]:
    method = context.known_method()
    epsilon_of, density_of = method.parameter("epsilon"), method.parameter("density")
    if epsilon_of is None or density_of is None:
        return
    for group in context.recipe.groups():
        for source in group.others:
            for t in STEPS:
                density = _number(group, "density", source, t, density_of.default)
                epsilon = _number(group, "epsilon", source, t, epsilon_of.default)
                if density is None or epsilon is None or density >= 1 or density <= 0:
                    continue
                if density - epsilon <= 0 or density + epsilon >= 1:
                    most = min(density, 1 - density)
                    text = f"{source.model}: density {density:g} ± epsilon {epsilon:g} leaves (0, 1)"
                    yield Found(text, group.where, f"lower epsilon below {most:g}")
                    break


def _number(group: Group, name: str, source: Source | None, t: float, default: Any = MISSING) -> float | None:
    """A parameter's value for tensors that match no filter, or None."""
    value = resolve(group.settings(name, source), "", t, default)
    return None if value is MISSING else as_number(value)


def _normalises(method: Strategy, group: Group) -> bool:
    """Whether the method divides by the sum of the weights: by its own switch where it has one."""
    for name in ("normalize", "normalize_weights"):
        if parameter := method.parameter(name):
            value = resolve(group.settings(name), "", 0, parameter.default)
            return value not in (False, "false", "False", 0)
    return True
