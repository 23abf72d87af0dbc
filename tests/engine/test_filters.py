"""nuslerp and model_stock with an angle for each row or column: the definitions, over blocks and threads; and verify agrees."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml

from mcp_server.engine.memory import peak_anon, shape_of
from mcp_server.engine.merge import merge
from mcp_server.engine.plan import make_plan
from mcp_server.engine.request import Request
from mcp_server.formats.recipe import read_recipe
from mcp_server.steps.verify import verify
from tests.engine import definitions as oracle
from tests.engine.synthetic import Tensors, load, write_model

SHAPES = {
    "model.embed_tokens.weight": (600, 500),  # two blocks
    "model.layers.0.mlp.experts.down_proj": (3, 4, 12),
    "model.layers.0.self_attn.q_proj.weight": (12, 12),
    "model.norm.weight": (12,),
}
WEIGHTS = [0.7, 0.4]
KINDS = {
    "rows": ("nuslerp", {"nuslerp_flatten": False}),
    "columns": ("nuslerp", {"nuslerp_flatten": False, "nuslerp_row_wise": True}),
    "stock": ("model_stock", {"filter_wise": True}),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Tensors]]:
    root, values = tmp_path_factory.mktemp("models"), []
    for n, name in enumerate(("base", "a", "b")):
        generator = np.random.default_rng(n)
        noise = {key: generator.standard_normal(shape) for key, shape in SHAPES.items()}
        values.append(noise if not n else {key: values[0][key] + 0.3 * noise[key] for key in SHAPES})
        write_model(root / name, values[-1], "float32", config={"num_hidden_layers": 1, "vocab_size": 600})
    return root, [load(root / name) for name in ("base", "a", "b")]


def recipe_of(root: Path, kind: str, base: bool) -> str:
    method, parameters = KINDS[kind]
    own = WEIGHTS if method == "nuslerp" else [None, None]
    models = [{"model": str(root / n), "parameters": {"weight": w} if w else {}} for n, w in zip("ab", own, strict=True)]
    document = {"merge_method": method, "models": models, "parameters": parameters, "dtype": "float32"}
    return yaml.safe_dump(document | ({"base_model": str(root / "base")} if base else {}))


@pytest.mark.parametrize(
    ("kind", "base"), [("rows", True), ("rows", False), ("columns", True), ("columns", False), ("stock", True)]
)
def test_every_row_or_column_has_an_angle_of_its_own(
    models: tuple[Path, list[Tensors]], tmp_path: Path, kind: str, base: bool
) -> None:
    root, (zero, a, b) = models
    recipe = recipe_of(root, kind, base)
    for threads in (1, 2):
        merge(Request(recipe, tmp_path / f"{threads}", tmp_path / f"journal{threads}", threads=threads), lambda *_: None)
    found, again = load(tmp_path / "1"), load(tmp_path / "2")
    for name in SHAPES:
        if kind == "stock":
            expected = oracle.model_stock_by_rows(zero[name], [a[name], b[name]])
        else:
            expected = oracle.nuslerp_by_rows(a[name], b[name], WEIGHTS, zero[name] if base else None, kind == "columns")
        np.testing.assert_allclose(found[name], expected, rtol=2e-6, atol=2e-6, err_msg=name)
        np.testing.assert_array_equal(found[name], again[name])
    for full in (False, True):
        seen = verify(tmp_path / "1", full=full)
        assert next(check for check in seen.checks if check.name == "recomputed").passed, seen
    plan = make_plan(read_recipe(recipe))
    assert peak_anon(shape_of(plan, 1))["filters"] >= 8 * 3 * {"rows": 600, "columns": 500, "stock": 600}[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_verify_finds_the_angle_of_the_whole_tensor_in_its_place(
    models: tuple[Path, list[Tensors]], tmp_path: Path, kind: str
) -> None:
    root, _ = models
    recipe = recipe_of(root, kind, base=True)
    whole = yaml.safe_dump(yaml.safe_load(recipe) | {"parameters": {}})
    merge(Request(whole, tmp_path / "out", tmp_path / "journal", threads=1), lambda *_: None)
    found = verify(tmp_path / "out", full=True, recipe=recipe)
    assert found.verdict == "failed"
    assert "embed_tokens" in next(check for check in found.checks if check.name == "recomputed").detail


def test_a_row_of_zeros_and_of_one_direction_stays_finite(tmp_path: Path) -> None:
    first = np.array([[0.0, 0, 0], [1, 2, 3], [1, 0, 0]])
    second = np.array([[1.0, 1, 1], [2, 4, 6], [0, 1, 0]])
    for name, values in (("a", first), ("b", second)):
        write_model(
            tmp_path / name, {"model.layers.0.self_attn.q_proj.weight": values}, "float32", config={"num_hidden_layers": 1}
        )
    recipe = recipe_of(tmp_path, "rows", base=False)
    merge(Request(recipe, tmp_path / "out", tmp_path / "journal", threads=1), lambda *_: None)
    expected = oracle.nuslerp_by_rows(first, second, WEIGHTS, None)
    np.testing.assert_allclose(load(tmp_path / "out")["model.layers.0.self_attn.q_proj.weight"], expected, rtol=1e-6)
