"""Damage of many kinds to a merge by the engine and to a fold from elsewhere: each is found, and the tensor is named."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mcp_server.schemas.evidence import Check
from mcp_server.steps.verify import verify
from tests.engine.synthetic import Tensors, load, low_rank, random_tensors, run, save, write_adapter, write_model

MATRIX, SQUARE = "model.layers.1.mlp.up_proj.weight", "model.layers.0.self_attn.q_proj.weight"
NORM, BIAS, HEAD = "model.layers.2.input_layernorm.weight", "model.layers.1.self_attn.q_proj.bias", "lm_head.weight"
METHODS = {
    "linear": {}, "task_arithmetic": {}, "ties": {"density": 0.5}, "dare_ties": {"density": 0.5},
    "breadcrumbs": {"density": 0.6}, "della": {"density": 0.5}, "karcher": {}, "sce": {"select_topk": 0.6},
    "ram": {"epsilon": 0.1}, "ramplus_tl": {"epsilon": 0.1}, "arcee_fusion": {}, "nearswap": {"t": 0.05},
    "multislerp": {}, "model_stock": {},
}  # fmt: skip
SHARED = {"sce", "ram", "ramplus_tl", "nearswap"}
"""Methods whose settings belong to the recipe, not to a source."""
Change = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
"""(merged, base, source) → damaged."""
DAMAGE: dict[str, tuple[str, Change, str]] = {
    "negated": (MATRIX, lambda m, _b, _s: -m, "opposite sign"),
    "norm negated": (NORM, lambda m, _b, _s: -m, "opposite sign"),
    "transposed": (SQUARE, lambda m, _b, _s: m.T, "transposed"),
    "doubled": (MATRIX, lambda m, _b, _s: 2 * m, "wrong scale"),
    "halved bias": (BIAS, lambda m, _b, _s: m / 2, "wrong scale"),
    "zeroed": (NORM, lambda m, _b, _s: 0 * m, "zero"),
    "left at the base": (MATRIX, lambda _m, b, _s: b, "equals the base"),
    "a source alone": (SQUARE, lambda _m, _b, s: s, "equals one source"),
    "rows reversed": (HEAD, lambda m, _b, _s: m[::-1], "reversed order"),
    "rows permuted": (MATRIX, lambda m, _b, _s: np.roll(m, 3, 0), "another order"),
    "columns permuted": (MATRIX, lambda m, _b, _s: np.roll(m, 1, 1), "another order"),
    "tail rows": (HEAD, lambda m, b, _s: np.concatenate([m[:-3], b[-3:] + 0.25]), "in rows 17 to 19"),
    "one value": (MATRIX, lambda m, _b, _s: m + np.eye(*m.shape, 5) * (np.arange(len(m)) == 2)[:, None], "in row 2"),
    "ones": (BIAS, lambda m, _b, _s: np.ones_like(m), "values differ"),
}


def recipe(folder: Path, method: str) -> str:
    own = {"weight": 0.5} | ({} if method in SHARED else METHODS[method])
    names = (
        ("base", "one", "two") if method == "linear" else ("one",) if method in ("arcee_fusion", "nearswap") else ("one", "two")
    )
    models = [{"model": str(folder / name), "parameters": own} for name in names]
    made = {"merge_method": method, "base_model": str(folder / "base"), "models": models, "dtype": "float32"}
    return json.dumps(made | ({"parameters": METHODS[method]} if method in SHARED else {}))


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("family")
    around = random_tensors(0)
    for seed, name in enumerate(("base", "one", "two")):
        tensors = random_tensors(seed, around=around if seed else None, size=0.2)
        write_model(folder / name, tensors, "float32")
    for method in METHODS:
        run(recipe(folder, method), folder / method)
    return folder


def failed(out: Path, *, full: bool, **more: object) -> dict[str, str]:
    checks: list[Check] = verify(out, full=full, **more).checks  # type: ignore[arg-type]
    return {check.name: check.detail for check in checks if check.passed is not True}


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_what_the_engine_makes_is_what_is_computed_again(family: Path, method: str, full: bool) -> None:
    assert failed(family / method, full=full) == {}


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_found_and_named(family: Path, kind: str, full: bool) -> None:
    name, change, words = DAMAGE[kind]
    out, whole = family / "task_arithmetic", load(family / "task_arithmetic")
    file = out / "model.safetensors"
    kept, tensors = file.read_bytes(), dict(whole)
    tensors[name] = change(whole[name], load(family / "base")[name], load(family / "one")[name])
    save(file, tensors, "float32")
    try:
        found = failed(out, full=full)
    finally:
        file.write_bytes(kept)
    assert name in found["digests"]
    assert f"{name} " in found["recomputed"]
    assert words in found["recomputed"]


@pytest.mark.parametrize("method", ["ties", "dare_ties", "breadcrumbs", "della"])
def test_one_negated_matrix_is_found_under_methods_that_select(family: Path, method: str) -> None:
    file = family / method / "model.safetensors"
    kept, tensors = file.read_bytes(), load(family / method)
    save(file, tensors | {MATRIX: -tensors[MATRIX]}, "float32")
    try:
        found = failed(family / method, full=True)
    finally:
        file.write_bytes(kept)
    assert f"{MATRIX} has the opposite sign" in found["recomputed"]


def folded(folder: Path, scale: float = 1.0) -> tuple[Path, Path, Path, Tensors]:
    base = write_model(folder / "base", random_tensors(0), "float32")
    factors = low_rank(5, {"model.layers.0.self_attn.q_proj": (12, 12), "model.layers.2.mlp.down_proj": (12, 16)}, 2)
    adapter, tensors = write_adapter(folder / "adapter", factors), load(base)
    for module in ("model.layers.0.self_attn.q_proj", "model.layers.2.mlp.down_proj"):
        delta = 2.0 * factors[f"{module}.lora_B.weight"] @ factors[f"{module}.lora_A.weight"]
        tensors[f"{module}.weight"] = tensors[f"{module}.weight"] + scale * delta
    return base, adapter, write_model(folder / "out", tensors, "float32"), tensors


def test_an_adapter_folded_elsewhere_is_verified_without_a_recipe(tmp_path: Path) -> None:
    base, adapter, out, tensors = folded(tmp_path)
    given = {"base": str(base), "sources": [str(adapter)]}
    assert set(failed(out, full=True, **given)) <= {"provenance"}
    save(out / "model.safetensors", tensors | {SQUARE: load(base)[SQUARE]}, "float32")
    assert f"{SQUARE} equals the base" in failed(out, full=True, **given)["recomputed"]


def test_a_base_beside_a_recipe_that_needs_none_stands_for_no_source(family: Path, tmp_path: Path) -> None:
    base, one, two = (load(family / name) for name in ("base", "one", "two"))
    out = write_model(tmp_path / "out", {name: 0.6 * one[name] + 0.4 * two[name] for name in base}, "float32")
    models = [{"model": f"gone/{name}", "parameters": {"weight": weight}} for name, weight in (("one", 0.6), ("two", 0.4))]
    text = json.dumps({"merge_method": "linear", "models": models, "dtype": "float32"})
    given = {"recipe": text, "base": str(family / "base"), "sources": [str(family / "one"), str(family / "two")]}
    assert failed(out, full=True, **given) == {}
    swapped = given | {"sources": given["sources"][::-1]}
    assert "recomputed" in failed(out, full=True, **swapped)


def test_another_base_is_called_the_wrong_base(tmp_path: Path) -> None:
    _, adapter, out, _ = folded(tmp_path)
    other = write_model(tmp_path / "other", random_tensors(9), "float32")
    assert "wrong base" in failed(out, full=True, base=str(other), sources=[str(adapter)])["recomputed"]


def test_without_a_recipe_the_weights_are_told_and_nothing_is_called_failed(family: Path, tmp_path: Path) -> None:
    base, one, two = (load(family / name) for name in ("base", "one", "two"))
    merged = {name: b + 0.6 * (one[name] - b) + 0.3 * (two[name] - b) for name, b in base.items()}
    out = write_model(tmp_path / "out", merged, "float32")
    found = verify(out, base=str(family / "base"), sources=[str(family / "one"), str(family / "two")])
    (check,) = [check for check in found.checks if check.name == "recomputed"]
    assert (check.passed, "one 0.60, two 0.30" in check.detail) == (None, True)


@pytest.mark.parametrize(("noise", "weight", "named"), [(0.6, 1.0, True), (0.6, 0.5, False), (0.0, 1.0, False)])
def test_a_base_that_the_sources_share_less_with_than_with_each_other_is_named(
    tmp_path: Path, noise: float, weight: float, named: bool
) -> None:
    root = random_tensors(0)
    base = random_tensors(7, around=root, size=noise) if noise else root
    write_model(tmp_path / "base", base, "float32")
    for seed, name in ((1, "one"), (2, "two")):
        write_model(tmp_path / name, random_tensors(seed, around=root, size=0.7), "float32")
    models = [{"model": str(tmp_path / name), "parameters": {"weight": weight}} for name in ("one", "two")]
    made = {"merge_method": "task_arithmetic", "base_model": str(tmp_path / "base"), "models": models, "dtype": "float32"}
    run(json.dumps(made), tmp_path / "out")
    assert ("may be the wrong base" in failed(tmp_path / "out", full=True).get("base", "")) is named
