"""Selective methods beyond small tensors: scores that nearly tie, adapters as the result, more blocks than one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mcp_server.engine.adapter_plan import plan_adapter
from mcp_server.errors import Unsupported
from mcp_server.steps.verify import verify
from tests.engine import definitions as oracle
from tests.engine.synthetic import Tensors, load, low_rank, random_tensors, run, shapes, write_adapter, write_model

UP = "model.layers.0.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Tensors]]:
    """A base and three fine-tunes with a matrix of several blocks, whose scores lie close together."""
    root, numbers = tmp_path_factory.mktemp("models"), np.random.default_rng(0)
    base = random_tensors(0, layers=1) | {UP: 0.05 * numbers.standard_normal((700, 1000))}
    write_model(root / "base", base)
    for name in ("one", "two", "three"):
        write_model(root / name, {key: value + 0.003 * numbers.standard_normal(value.shape) for key, value in base.items()})
    return root, [load(root / name) for name in ("base", "one", "two", "three")]


def recipe(root: Path, method: str, names: tuple[str, ...], **parameters: Any) -> str:
    entries = [{"model": str(root / name)} for name in names]
    body = {"merge_method": method, "base_model": str(root / "base"), "models": entries, "parameters": parameters}
    return json.dumps(body | {"dtype": "float32"})


@pytest.mark.parametrize("topk", [1.0, 0.37])
def test_sce_over_several_blocks_is_verified(models: tuple[Path, list[Tensors]], tmp_path: Path, topk: float) -> None:
    root, (base, *values) = models
    text = recipe(root, "sce", ("one", "two", "three"), select_topk=topk)
    run(text, tmp_path / "out", threads=2)
    found = verify(tmp_path / "out", recipe=text, full=True)
    assert found.verdict == "verified", found
    exact = oracle.sce(base[UP], [value[UP] for value in values], topk)
    assert (~np.isclose(load(tmp_path / "out")[UP], exact, rtol=1e-6, atol=1e-8)).sum() <= 8  # variances that tie in float32


def test_arcee_fusion_takes_the_same_elements_as_its_definition(models: tuple[Path, list[Tensors]], tmp_path: Path) -> None:
    root, (base, one, *_) = models
    run(recipe(root, "arcee_fusion", ("one",)), tmp_path / "out", threads=2)
    found, exact = load(tmp_path / "out")[UP], oracle.arcee_fusion(base[UP], one[UP])
    assert 0.01 < (exact != base[UP]).mean() < 0.3
    assert (~np.isclose(found, exact, rtol=1e-6, atol=1e-8)).sum() <= 8


@pytest.mark.parametrize("method", ["arcee_fusion", "karcher"])
def test_methods_of_whole_values_make_no_adapter(tmp_path: Path, method: str) -> None:
    base = write_model(tmp_path / "base", random_tensors(0))
    modules = {key.removesuffix(".weight"): shape for key, shape in shapes().items() if "q_proj.weight" in key}
    names = ("a", "b") if method == "karcher" else ("a",)
    adapters = [write_adapter(tmp_path / name, low_rank(n, modules, 2)) for n, name in enumerate(names)]
    body = {"merge_method": method, "models": [{"model": f"{base}+{adapter}"} for adapter in adapters]}
    text = json.dumps(body | ({} if method == "karcher" else {"base_model": str(base)}))
    with pytest.raises(Unsupported, match="interpolates whole models"):
        plan_adapter(text, 4)
