"""The k largest, exactly, whichever way they are found."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mcp_server.engine import selection
from mcp_server.engine.deltas import OpenTensor
from mcp_server.engine.plan import make_plan
from mcp_server.engine.reader import Reader
from mcp_server.engine.selection import Cut
from mcp_server.engine.thread_pool import ThreadPool
from mcp_server.formats.recipe import merge_recipe
from tests.engine.synthetic import random_tensors, write_model

NAME = "model.layers.0.mlp.up_proj.weight"


def expected(values: np.ndarray, k: int) -> np.ndarray:
    mask = np.zeros(values.size, bool)
    mask[np.argsort(-np.abs(values).ravel(), kind="stable")[:k]] = True
    return mask


def chosen(values: np.ndarray, cut: Cut) -> np.ndarray:
    bits = np.abs(values).ravel().view(np.uint32)
    return (bits > cut.pattern) | ((bits == cut.pattern) & (np.arange(bits.size) < cut.ties))


def open_values(folder: Path, values: np.ndarray) -> OpenTensor:
    """A tensor whose only delta is `values`."""
    tensors = random_tensors(0, layers=1)
    write_model(folder / "base", tensors | {NAME: np.zeros_like(values)}, "float32")
    write_model(folder / "one", tensors | {NAME: values}, "float32")
    entry = {"model": str(folder / "one"), "parameters": {"weight": 1, "density": 0.5}}
    plan = make_plan(merge_recipe(json.dumps({"merge_method": "ties", "base_model": str(folder / "base"), "models": [entry]})))
    return OpenTensor(next(tensor for tensor in plan.tensors if tensor.name == NAME), Reader())


VALUES = {
    "normal": lambda g: g.standard_normal((64, 48)),
    "few distinct": lambda g: g.integers(-3, 4, (64, 48)).astype(float),
    "all equal": lambda g: np.full((64, 48), -0.5),
    "mostly zero": lambda g: g.standard_normal((64, 48)) * (g.random((64, 48)) < 0.01),
    "tiny and huge": lambda g: 10.0 ** g.uniform(-44, 38, (64, 48)),
    "rows of different size": lambda g: g.standard_normal((64, 48)) * np.logspace(-3, 3, 64)[:, None],
}


@pytest.mark.parametrize("kind", VALUES)
@pytest.mark.usefixtures("small_blocks")
def test_both_ways_give_exactly_the_k_largest(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    values = VALUES[kind](np.random.default_rng(1)).astype(np.float32)
    tensor, pool = open_values(tmp_path, values), ThreadPool(2)
    guessed = 0
    for margin in (0.004, 0.2):
        monkeypatch.setattr(selection, "MARGIN", margin)
        for k in (1, 2, 100, 1536, 3000, 3071, 3072):
            wanted = expected(values, k)
            [counted] = selection.radix_select(tensor, [(0, k)], pool)
            assert (chosen(values, counted) == wanted).all(), k
            if (guess := selection.sampled_select(tensor, [(0, k)], pool)) is not None:
                guessed += 1
                assert (chosen(values, guess[0]) == wanted).all(), k
    assert guessed or kind in ("all equal", "few distinct", "mostly zero", "rows of different size")
    tensor.reader.close()
    pool.close()


@pytest.mark.usefixtures("small_blocks")
def test_several_cuts_of_one_delta(tmp_path: Path) -> None:
    values = np.random.default_rng(2).standard_normal((64, 48)).astype(np.float32)
    tensor, pool = open_values(tmp_path, values), ThreadPool(1)
    cuts = selection.radix_select(tensor, [(0, 10), (0, 2000)], pool)
    assert [(chosen(values, cut) == expected(values, k)).all() for cut, k in zip(cuts, (10, 2000), strict=True)] == [True, True]
    tensor.reader.close()


@settings(max_examples=60, deadline=None)
@given(arrays(np.float32, st.integers(1, 40), elements=st.floats(-1e6, 1e6, width=32)), st.data())
def test_a_cut_keeps_k_elements_and_none_outside_is_larger(values: np.ndarray, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, values.size))
    order = np.argsort(-np.abs(values), kind="stable")
    pattern = int(np.abs(values[order[k - 1]]).view(np.uint32))
    mask = chosen(values, Cut(pattern, int(order[k - 1]) + 1))
    assert mask.sum() == k
    assert mask.all() or np.abs(values[mask]).min() >= np.abs(values[~mask]).max()
