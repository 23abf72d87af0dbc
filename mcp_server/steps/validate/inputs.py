"""MM2xx: how many models the method takes, and which of them is the base."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Final

from mcp_server.steps.validate.context import Context
from mcp_server.steps.validate.methods import ignores_base, needs_base, source_parameters
from mcp_server.steps.validate.registry import Found, check

BASELESS: Final = "linear, karcher, multislerp and nuslerp need none"


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
        beside = len(group.sources if ignores_base(method) else group.others)
        for count, (low, high), what in (
            (len(group.sources), method.inputs.accepts, "models" + (", the base counted" if group.base else "")),
            (beside, method.inputs.accepts_beside_base, "models beside the base"),
        ):
            if count < low or (high is not None and count > high):
                wanted = f"exactly {low}" if low == high else f"at most {high}" if high and count > high else f"at least {low}"
                yield Found(f"{method.id} takes {wanted} {what}; here are {count}", group.where)


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
        for model, count in Counter(source.model for source in group.sources).items():
            if count > 1:
                yield Found(f"{model} is listed {count} times", group.where)
