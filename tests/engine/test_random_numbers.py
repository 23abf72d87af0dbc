"""Masks that depend on seed, source, tensor and position, and on nothing else."""

from __future__ import annotations

import numpy as np
import pytest

from mcp_server.engine.random_numbers import keep_below, keep_random, keep_with_probability, stream_start

N = 200_000


def mask(seed: int, source: int, tensor: str, density: float, begin: int = 0, count: int = N) -> np.ndarray:
    kept = np.empty(count, np.float32)
    keep_random(np.ones(count, np.float32), stream_start(seed, source, tensor), np.uint64(begin), keep_below(density), kept)
    return kept > 0


@pytest.mark.parametrize("density", [0.01, 0.1, 0.5, 0.9, 0.999])
def test_the_kept_fraction_is_the_density(density: float) -> None:
    error = abs(mask(1, 0, "a", density).mean() - density)
    assert error < 5 * (density * (1 - density) / N) ** 0.5


def test_the_next_element_does_not_know_the_last() -> None:
    kept = mask(1, 0, "a", 0.5)
    for lag in (1, 2, 64, 4096):
        assert abs((kept[lag:] == kept[:-lag]).mean() - 0.5) < 5 * 0.5 / N**0.5


@pytest.mark.parametrize("other", [(2, 0, "a"), (1, 1, "a"), (1, 0, "b")])
def test_another_seed_source_or_tensor_is_independent(other: tuple[int, int, str]) -> None:
    assert abs((mask(1, 0, "a", 0.5) == mask(*other, 0.5)).mean() - 0.5) < 5 * 0.5 / N**0.5


def test_a_part_of_a_tensor_has_the_same_mask_as_in_the_whole() -> None:
    assert (mask(1, 0, "a", 0.3)[1000:5000] == mask(1, 0, "a", 0.3, 1000, 4000)).all()


def test_a_higher_density_keeps_what_a_lower_one_kept() -> None:
    assert (mask(1, 0, "a", 0.6) >= mask(1, 0, "a", 0.4)).all()


def test_each_element_can_have_its_own_probability() -> None:
    probability, kept = np.linspace(0, 1, N), np.empty(N, np.float32)
    start = stream_start(1, 0, "a")
    keep_with_probability(np.ones(N, np.float32), probability, start, np.uint64(0), kept)
    parts = kept.reshape(10, -1).mean(axis=1)
    assert np.allclose(parts, np.arange(0.05, 1, 0.1), atol=0.02)
