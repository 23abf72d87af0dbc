"""The cache that grows in place against the one of transformers, over the same steps."""

from __future__ import annotations

import copy

import torch
from transformers.cache_utils import DynamicCache

from mcp_server.workers.evaluating.growing import GROWTH, let_grow

HEADS, SIZE = 2, 4


def caches() -> tuple[DynamicCache, DynamicCache]:
    """transformers' own and ours, each with five tokens of three rows in two layers."""
    plain = DynamicCache()
    grows(plain, 3, 5)
    return plain, let_grow(copy.deepcopy(plain))


def grows(cache: DynamicCache, rows: int, tokens: int, seed: int = 0) -> None:
    drawn = torch.Generator().manual_seed(seed)
    for layer in range(2):
        keys, values = (torch.randn(rows, HEADS, tokens, SIZE, generator=drawn) for _ in range(2))
        cache.update(keys, values, layer)


def same(one: DynamicCache, other: DynamicCache) -> bool:
    pairs = zip(one.layers, other.layers, strict=True)
    return all(torch.equal(a.keys, b.keys) and torch.equal(a.values, b.values) for a, b in pairs)


def test_tokens_rows_and_copies_are_those_of_the_plain_cache() -> None:
    plain, ours = caches()
    for cache in (plain, ours):
        for number in range(2 * GROWTH):
            grows(cache, 3, 1, number)
        cache.batch_select_indices(torch.tensor([2, 0]))
        grows(cache, 2, 7, 1)
        grows(copy.deepcopy(cache), 2, 3, 2)  # a copy that goes on leaves its original alone
        grows(cache, 2, 1, 3)
        cache.batch_repeat_interleave(2)
        grows(cache, 4, 1, 4)
    assert same(plain, ours)
    assert ours.get_seq_length() == plain.get_seq_length()


def test_a_token_more_stays_in_the_same_memory_until_there_is_no_room() -> None:
    _, ours = caches()
    places = set()
    for number in range(GROWTH):
        grows(ours, 3, 1, number)
        places.add(ours.layers[0].keys.data_ptr())
    assert len(places) == 1


def test_rows_that_are_left_hold_no_memory_of_those_that_ended() -> None:
    _, ours = caches()
    grows(ours, 3, 1)
    ours.batch_select_indices(torch.tensor([1]))
    layer = ours.layers[0]
    assert layer.keys.untyped_storage().nbytes() == layer.keys.numel() * layer.keys.element_size()
    assert layer._keys == (None, None)
