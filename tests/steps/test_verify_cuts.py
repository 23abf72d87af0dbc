"""Which elements verify keeps of a delta that is thinned by magnitude, against a plain sort of the whole tensor."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mcp_server.formats.tensors import StoredTensor
from mcp_server.recompute import reading, sparse
from mcp_server.recompute.inputs import Made, Operand
from mcp_server.recompute.sparse import Sparse
from mcp_server.recompute.values import Value

SHAPE = (12, 8)
GENERATOR = np.random.default_rng(3)
DISTINCT = GENERATOR.permutation(math.prod(SHAPE)).astype(np.float32).reshape(SHAPE) - 40.5
TIED = np.round(GENERATOR.standard_normal(SHAPE) * 2).astype(np.float32)


@dataclass(frozen=True)
class Counted(Value):
    """A value that remembers which rows were asked for."""

    asked: tuple[list[tuple[int, int]], ...] = ([],)

    def rows(self, span: tuple[int, int]) -> tuple[Any, Any]:
        self.asked[0].append(span)
        return super().rows(span)


def stored(folder: Path, name: str, values: Any) -> StoredTensor:
    (folder / name).write_bytes(values.astype("<f4").tobytes())
    return StoredTensor(folder / name, 0, "F32", SHAPE, values.size)


def ties(folder: Path, densities: list[float], deltas: list[Any]) -> tuple[Made, list[list[tuple[int, int]]]]:
    """A TIES merge of these deltas over zeros, and the rows of each operand that were read so far."""
    asked: list[list[tuple[int, int]]] = [[] for _ in deltas]
    operands = tuple(
        Operand(f"m{i}", Counted(stored(folder, f"m{i}", delta), "w", None, (asked[i],)), {"weight": 1.0, "density": density})
        for i, (density, delta) in enumerate(zip(densities, deltas, strict=True))
    )
    base = Value(stored(folder, "base", np.zeros(SHAPE)), "w")
    return Made("w", SHAPE, "ties", operands, base, {"rescale": False, "normalize": False, "lambda": 1.0}), asked


def largest(delta: Any, density: float) -> Any:
    """The delta with its largest magnitudes kept; of equal ones those with the lower index."""
    kept = np.argsort(-np.abs(delta).ravel(), kind="stable")[: max(1, int(density * delta.size))]
    mask = np.zeros(delta.size, bool)
    mask[kept] = True
    return (delta.ravel() * mask).reshape(delta.shape)


@pytest.mark.parametrize("held", [0, 1 << 20])
@pytest.mark.parametrize("density", [0.01, 0.3, 0.5, 0.99])
@pytest.mark.parametrize("delta", [DISTINCT, TIED], ids=["distinct", "tied"])
def test_the_largest_are_kept_whether_magnitudes_are_held_or_computed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, delta: Any, density: float, held: int
) -> None:
    monkeypatch.setattr(sparse, "HELD_ELEMENTS", held)
    monkeypatch.setattr(reading, "BLOCK_ELEMENTS", 16)  # six blocks of two rows
    made, _ = ties(tmp_path, [density], [delta])
    thinned = Sparse(made, None)
    blocks = [thinned.block((first, first + 3)).expected for first in range(0, SHAPE[0], 3)]
    np.testing.assert_array_equal(np.concatenate(blocks), largest(delta, density))


def test_thresholds_take_one_reading_of_every_delta(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "BLOCK_ELEMENTS", 48)
    made, asked = ties(tmp_path, [0.5, 0.3], [DISTINCT, TIED])
    Sparse(made, None)
    assert asked == [[(0, 6), (6, 12)]] * 2


def test_a_delta_too_large_to_hold_is_read_twice_when_nothing_ties(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sparse, "HELD_ELEMENTS", 0)
    distinct = np.arange(1, 97, dtype=np.float32).reshape(SHAPE)
    made, asked = ties(tmp_path, [0.5], [distinct])
    Sparse(made, None)
    assert asked == [[(0, 12)] * 2]
