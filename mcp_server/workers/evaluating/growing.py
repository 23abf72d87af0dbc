"""A cache of keys and values that a token is added to in place.

transformers' own joins old and new into new memory, so every token of a reply copies all that came before it.
"""

from __future__ import annotations

from typing import Any, Final

from transformers.cache_utils import DynamicLayer

GROWTH: Final = 64
"""Tokens that there is room for after the memory was made larger."""


class GrowingLayer(DynamicLayer):
    """Keys and values, each (batch, heads, tokens, size of a head), at the beginning of memory that has room for more tokens."""

    def update(self, key_states: Any, value_states: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        if not self.is_initialized:
            return super().update(key_states, value_states, *args, **kwargs)
        self.keys = self._longer("keys", key_states)
        self.values = self._longer("values", value_states)
        return self.keys, self.values

    def _longer(self, name: str, new: Any) -> Any:
        known, (memory, seen) = getattr(self, name), self.__dict__.get("_" + name, (None, None))
        end = known.shape[-2] + new.shape[-2]
        if known is not seen or end > memory.shape[-2]:
            memory = known.new_empty((*known.shape[:-2], end + GROWTH, known.shape[-1]))
            memory[..., : known.shape[-2], :] = known
        memory[..., known.shape[-2] : end, :] = new
        found = memory[..., :end, :]
        self.__dict__["_" + name] = memory, found
        return found


def let_grow(cache: Any) -> Any:
    """The cache, whose layers are plain ones, with layers that grow in place."""
    for layer in cache.layers:
        if type(layer) is DynamicLayer:
            layer.__class__ = GrowingLayer
    return cache
