"""The method's parameters for each tensor of the output, worked out once for all tensors that the recipe cannot tell apart."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Any

from mcp_server.engine.signatures import Signature, check_values
from mcp_server.engine.sources import Input, Source
from mcp_server.errors import Incompatible
from mcp_server.formats import tensor_names
from mcp_server.formats.recipe import Group
from mcp_server.formats.recipe.parameters import has_gradient, resolve
from mcp_server.formats.recipe.settings import filters_of

Settings = tuple[dict[str, Any], tuple[dict[str, Any], ...]]
"""Shared values, and those of each source in the recipe's order."""


class TensorSettings:
    """Of the groups of one recipe; `stack` is the donor's main stack of layers, which gradients run over."""

    def __init__(self, method: str, groups: tuple[Group, ...], signature: Signature, donor: Source, stack: str | None) -> None:
        self.method, self.groups, self.signature, self.donor, self.stack = method, groups, signature, donor, stack
        self._resolved: dict[tuple[object, ...], Settings] = {}

    def of(self, group: Group, name: str, names: list[str], inputs: list[Input], t: float) -> Settings:
        """The shared values and those of each source, checked; found once for all tensors that the recipe cannot tell apart."""
        seen = (id(group), t, *(self._told_apart(one) for one in dict.fromkeys((name, *names))))
        if (known := self._resolved.get(seen)) is not None:
            return known
        base_ref = group.base if self.signature.base != "ignored" else None
        per_source: tuple[dict[str, Any], ...] = tuple(
            {}
            if listed.model == base_ref
            else {
                key: self._value(key, group.settings(key, listed), stored_name, t, kind, default, found.source)
                for key, (kind, default) in self.signature.source.items()
            }
            for listed, stored_name, found in zip(group.sources, names, inputs, strict=True)
        )
        shared = {
            key: self._value(key, group.settings(key), name, t, kind, default, "the recipe")
            for key, (kind, default) in self.signature.shared.items()
        }
        check_values(self.method, shared, dict(zip((i.source for i in inputs), per_source, strict=True)), name)
        self._resolved[seen] = shared, per_source
        return shared, per_source

    def _told_apart(self, name: str) -> tuple[object, ...]:
        """All that a setting can see of a tensor's name: which filters are part of it, and its stack where there are several."""
        found = tensor_names.split_layer(name) if len(self.donor.stacks) > 1 else None
        return (found and found[0], *(part in name for part in self._filters))

    @cached_property
    def _filters(self) -> tuple[str, ...]:
        tables = [scope for group in self.groups for scope in group.scopes]
        tables += [listed.parameters for group in self.groups for listed in group.sources]
        return tuple(dict.fromkeys(part for table in tables for setting in table.values() for part in filters_of(setting)))

    def _value(self, key: str, settings: Iterator[Any], tensor: str, t: float, kind: Any, default: Any, whose: str) -> Any:
        """A parameter for one tensor. A gradient runs over the main stack; one that is filtered to a stack runs over that."""
        every = list(settings)
        found = tensor_names.split_layer(tensor)
        if found and len(self.donor.stacks) > 1 and found[0] != self.stack and (plain := has_gradient(every, tensor)) is not None:
            if self.stack is None and plain:
                raise Incompatible(
                    f"{key} of {whose} is a gradient over the layers, and {self.donor.ref} has several stacks of them: "
                    f"{', '.join(self.donor.stacks)}",
                    f"name the stack: {key}: [{{filter: {found[0]}, value: [0, 1]}}, {{value: 0.5}}]",
                )
            t = 0.0 if plain else t
        return resolve(key, every, tensor, t, kind, default, whose)
