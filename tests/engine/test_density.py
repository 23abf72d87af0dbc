"""Densities at the ends of their range: 0 keeps nothing of a change, as mergekit has it, and a gradient may pass through it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from mcp_server.steps.verify import verify
from tests.engine.synthetic import load, random_tensors, run, write_model

METHODS = ("ties", "dare_ties", "dare_linear", "breadcrumbs", "breadcrumbs_ties", "della", "della_linear")


@pytest.fixture
def models(tmp_path: Path) -> dict[str, str]:
    base = random_tensors(0)
    folders = {"base": write_model(tmp_path / "base", base, "float32")}
    folders |= {
        name: write_model(tmp_path / name, random_tensors(n, around=base, size=0.3), "float32")
        for n, name in ((1, "a"), (2, "b"))
    }
    return {name: str(folder) for name, folder in folders.items()}


def merge(models: dict[str, str], out: Path, method: str, densities: dict[str, object]) -> dict[str, np.ndarray]:
    entries = [{"model": models[name], "parameters": {"weight": 0.6, "density": value}} for name, value in densities.items()]
    run(json.dumps({"merge_method": method, "base_model": models["base"], "models": entries, "dtype": "float32"}), out)
    return load(out)


@pytest.mark.parametrize("method", METHODS)
def test_a_gradient_from_zero_leaves_the_first_layer_the_bases(
    method: str, models: dict[str, str], tmp_path: Path, small_blocks: None
) -> None:
    base, made = load(Path(models["base"])), merge(models, tmp_path / "out", method, {"a": [0, 0.5, 1]})
    bare = [name for name in base if "layers.0." in name]
    assert bare
    for name in bare:
        np.testing.assert_array_equal(made[name], base[name])
    assert all((made[name] != base[name]).any() for name in base if "layers.2." in name and "weight" in name)


@pytest.mark.parametrize("method", METHODS)
def test_such_a_merge_is_verified_value_by_value(method: str, models: dict[str, str], tmp_path: Path) -> None:
    merge(models, tmp_path / "out", method, {"a": [0, 0.5, 1], "b": 0.6})
    found = verify(tmp_path / "out", full=True)
    assert [check for check in found.checks if check.name == "recomputed" and check.passed is not True] == []
    assert "recomputed" in [check.name for check in found.checks]


@pytest.mark.parametrize("method", METHODS)
def test_a_source_of_density_zero_is_as_if_it_were_not_there(method: str, models: dict[str, str], tmp_path: Path) -> None:
    with_it = merge(models, tmp_path / "with", method, {"a": 1.0, "b": 0})
    without = merge(models, tmp_path / "without", method, {"a": 1.0})
    for name, values in without.items():
        np.testing.assert_array_equal(with_it[name], values)
