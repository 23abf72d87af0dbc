"""MM2xx: what the weights and densities add up to, over the layers and over the sources."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from mcp_server.catalog import Strategy
from mcp_server.formats.recipe import MISSING, Group, Source, as_flag, as_number, resolve
from mcp_server.formats.recipe.settings import is_gradient
from mcp_server.steps.validate.context import Context
from mcp_server.steps.validate.layers import positions
from mcp_server.steps.validate.methods import ignores_base, needs_base
from mcp_server.steps.validate.registry import Found, check

DOMINATES: Final = 10.0
SWITCHES: Final = ("normalize", "normalize_weights")
"""What turns dividing by the sum of the weights off; a method without one (nuslerp) knows what to do with a sum of 0."""


@check("MM208")
def weights_sum_to_zero(context: Context) -> Iterator[Found]:
    method = context.known_method()
    if method.parameter("weight") is None or needs_base(method) or not any(map(method.parameter, SWITCHES)):
        return
    for group in context.recipe.groups():
        if not normalises(method, group):
            continue
        inputs = group.sources if ignores_base(method) else group.others
        for t in positions(context, group, "weight"):
            weights = [number_at(group, "weight", source, t) for source in inputs]
            if len(weights) > 1 and None not in weights and abs(sum(w for w in weights if w is not None)) < 1e-6:
                shown = ", ".join(f"{w:g}" for w in weights if w is not None)
                yield Found(
                    f"the weights {shown} sum to 0 and {method.id} divides by the sum: every tensor is non-finite", group.where
                )
                break


@check("MM214")
def weights_are_blunted(context: Context) -> Iterator[Found]:
    method = context.known_method()
    if method.deltas != "elected":
        return
    for group in context.recipe.groups()[:1]:
        weights = [number_at(group, "weight", source, 0) for source in group.others]
        known = [w for w in weights if w is not None]
        if normalises(method, group) and len(known) > 1 and min(known) > 0 and max(known) / min(known) >= 1.5:
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
            ends = positions(context, group, "weight")
            weights = [number_at(group, "weight", source, t) for source in group.others for t in ends]
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
        weights = [abs(w) for source in plain if (w := number_at(group, "weight", source, 0))]
        if len(weights) > 1 and max(weights) >= DOMINATES * min(weights):
            yield Found(f"one weight is {max(weights) / min(weights):g} times another", group.where)


@check("MM221")
def density_of_nothing(context: Context) -> Iterator[Found]:
    method = context.known_method()
    if method.sparsify == "none":
        return
    for group in context.recipe.groups():
        for source in group.others:
            setting = next(group.settings("density", source), None)
            if not isinstance(setting, (list, dict)) and as_number(setting) == 0:
                yield Found(f"{source.model} has density 0: nothing of its change is kept", group.where)


@check("MM216")
def density_and_epsilon(context: Context) -> Iterator[Found]:
    method = context.known_method()
    epsilon_of, density_of = method.parameter("epsilon"), method.parameter("density")
    if epsilon_of is None or density_of is None:
        return
    for group in context.recipe.groups():
        for source in group.others:
            for t in positions(context, group, "density", "epsilon"):
                density = number_at(group, "density", source, t, default=density_of.default)
                epsilon = number_at(group, "epsilon", source, t, default=epsilon_of.default)
                if density is None or epsilon is None or density >= 1 or density <= 0:
                    continue
                if density - epsilon <= 0 or density + epsilon >= 1:
                    most = min(density, 1 - density)
                    text = f"{source.model}: density {density:g} ± epsilon {epsilon:g} leaves (0, 1)"
                    yield Found(text, group.where, f"lower epsilon below {most:g}")
                    break


def number_at(group: Group, name: str, source: Source | None, t: float, tensor: str = "", default: Any = MISSING) -> float | None:
    """A parameter's value for one tensor (by default one that matches no filter), or None."""
    value = resolve(group.settings(name, source), tensor, t, default)
    return None if value is MISSING else as_number(value)


def normalises(method: Strategy, group: Group, t: float = 0.0, tensor: str = "") -> bool:
    """Whether the method divides by the sum of the weights: by its own switch where it has one."""
    for name in SWITCHES:
        if parameter := method.parameter(name):
            return bool(as_flag(resolve(group.settings(name), tensor, t, parameter.default)))
    return True
