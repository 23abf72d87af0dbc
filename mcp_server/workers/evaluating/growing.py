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

    _keys: tuple[Any, Any] = None, None
    _values: tuple[Any, Any] = None, None
    """The memory, and the part of it that was given out last."""

    def update(self, key_states: Any, value_states: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        if not self.is_initialized:
            return super().update(key_states, value_states, *args, **kwargs)
        self.keys = self._longer("keys", key_states)
        self.values = self._longer("values", value_states)
        return self.keys, self.values

    def batch_select_indices(self, indices: Any) -> None:
        super().batch_select_indices(indices)
        self._keys = self._values = None, None  # the memory of all rows is not needed beside that of the chosen ones

    def _longer(self, name: str, new: Any) -> Any:
        memory: Any
        known, (memory, seen) = getattr(self, name), getattr(self, "_" + name)
        end = known.shape[-2] + new.shape[-2]
        if known is not seen or end > memory.shape[-2]:
            memory = known.new_empty((*known.shape[:-2], end + GROWTH, known.shape[-1]))
            memory[..., : known.shape[-2], :] = known
        memory[..., known.shape[-2] : end, :] = new
        found = memory[..., :end, :]
        setattr(self, "_" + name, (memory, found))
        return found


def let_grow(cache: Any) -> Any:
    """The cache, whose layers are plain ones, with layers that grow in place."""
    for layer in cache.layers:
        if type(layer) is DynamicLayer:
            layer.__class__ = GrowingLayer
    return cache
