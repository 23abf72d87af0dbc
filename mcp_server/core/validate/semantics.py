"""MM2xx: what the method needs, and what the settings mean."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from mcp_server.core.catalog import Strategy
from mcp_server.core.catalog.models import Parameter
from mcp_server.core.errors import did_you_mean
from mcp_server.core.recipe import MISSING, Group, Source, as_number, has_fallback, resolve, scalars
from mcp_server.core.recipe.keys import TOP
from mcp_server.core.recipe.settings import is_gradient
from mcp_server.core.recipe.tables import OWN
from mcp_server.core.validate.context import Context
from mcp_server.core.validate.methods import ignores_base, merge_methods, needs_base, parameter_names, source_parameters
from mcp_server.core.validate.registry import Found, check

BASELESS: Final = "linear, karcher, multislerp and nuslerp need none"
DOMINATES: Final = 10.0
STEPS: Final = [n / 20 for n in range(21)]
"""Positions at which a gradient over the layers is looked at."""


@check("MM201")
def base_required(context: Context) -> Iterator[Found]:
    method = context.known_method()
    if needs_base(method) and context.recipe.base is None and any(group.base is None for group in context.recipe.groups()):
        which = "one of its two models as base_model" if method.inputs.base == "one_of_the_sources" else "a base_model"
        yield Found(f"{method.id} needs {which}, and the recipe names none ({BASELESS})", "base_model")


@check("MM202")
def base_in_every_slice(context: Context) -> Iterator[Found]:
    method = context.known_method()
    if ignores_base(method):
        return
    for group in context.recipe.groups():
        if group.base and not group.base_added and all(source.model != group.base for source in group.sources):
            yield Found(f"the base {group.base} is not among the sources of this slice", f"{group.where}.sources")


@check("MM203")
def number_of_inputs(context: Context) -> Iterator[Found]:
    method = context.known_method()
    for group in context.recipe.groups():
        if method.cost.kind == "copies":
            if len(group.sources) != 1:
                yield Found(f"{method.id} takes one model per slice; here are {len(group.sources)}", group.where)
            continue
        counted = group.sources if counts_all(method) else group.others
        low, high = method.inputs.min, method.inputs.max
        too_few = len(counted) < low and not ignores_base(method) and (low > 1 or method.inputs.base != "required")
        if not too_few and (high is None or len(counted) <= high):
            continue
        wanted = f"exactly {low}" if low == high else f"at most {high}" if high and len(counted) > high else f"at least {low}"
        what = "models, the base counted" if method.inputs.base == "one_of_the_sources" else "models beside the base"
        what = "models" if ignores_base(method) else what
        yield Found(f"{method.id} takes {wanted} {what}; here are {len(counted)}", group.where)


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
        if name not in parameter_names() and name not in TOP and not name.startswith(OWN):
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


@check("MM207")
def legal_values(context: Context) -> Iterator[Found]:
    method = context.known_method()
    for where, name, setting in all_parameters(context):
        parameter = method.parameter(name)
        for value in scalars(setting) if parameter else ():
            if parameter and (problem := parameter.problem(_typed(parameter, value))):
                start = f"; try {parameter.start if parameter.start is not None else parameter.default}"
                usual = start if parameter.start is not None or parameter.default is not None else ""
                yield Found(f"{name} {problem}{usual}", where)


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


@check("MM209")
def unlisted_base_is_averaged(context: Context) -> Iterator[Found]:
    method = context.known_method()
    if not ignores_base(method):
        return
    for group in context.recipe.groups():
        if group.base_added:
            text = f"{method.id} takes no base, so the unlisted {group.base} is averaged in as one more model"
            yield Found(text, "base_model", "remove base_model, or list it with the weight that you want")


@check("MM212")
def base_settings_unread(context: Context) -> Iterator[Found]:
    method = context.known_method()
    if not needs_base(method) or not source_parameters(method):
        return
    for where, source in context.sources():
        if source.model == context.recipe.base and source.parameters:
            yield Found(f"{', '.join(source.parameters)} of the base {source.model} is not read", f"{where}.parameters")


@check("MM213")
def same_model_twice(context: Context) -> Iterator[Found]:
    for group in context.recipe.groups():
        models = [source.model for source in group.sources]
        for model in dict.fromkeys(m for m in models if models.count(m) > 1):
            yield Found(f"{model} is listed {models.count(model)} times", group.where)


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


def counts_all(method: Strategy) -> bool:
    """Whether the catalogue counts the base among the inputs of this method."""
    return method.inputs.base in ("one_of_the_sources", "ignored")


def all_parameters(context: Context) -> Iterator[tuple[str, str, Any]]:
    """Every parameter of the recipe: where, name, setting."""
    recipe = context.recipe
    for name, setting in recipe.parameters.items():
        yield f"parameters.{name}", name, setting
    for n, slice_ in enumerate(recipe.slices):
        for name, setting in slice_.parameters.items():
            yield f"slices[{n}].parameters.{name}", name, setting
    for module_name, module in recipe.modules.items():
        for name, setting in module.parameters.items():
            yield f"modules.{module_name}.parameters.{name}", name, setting
        for n, slice_ in enumerate(module.slices):
            for name, setting in slice_.parameters.items():
                yield f"modules.{module_name}.slices[{n}].parameters.{name}", name, setting
    for where, source in context.sources():
        for name, setting in source.parameters.items():
            yield f"{where}.parameters.{name}", name, setting


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


def _typed(parameter: Parameter, value: Any) -> Any:
    """mergekit reads '1e-5' and true as numbers where a number belongs, so both are judged as what they mean."""
    if parameter.type in ("float", "int") and isinstance(value, str):
        number = as_number(value)
        return value if number is None else number
    return value
