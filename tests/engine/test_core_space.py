"""Adapters merged on the core of their factors, and on a subspace of the rank that is asked for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mcp_server.engine.adapter_memory import peak_anon_of_adapter
from mcp_server.engine.adapter_plan import plan_adapter
from mcp_server.engine.adapter_space import merge_adapters
from mcp_server.engine.request import Request
from mcp_server.errors import BadInput, Malformed, Unsupported
from mcp_server.jobs.engines import choose
from mcp_server.schemas.job import MergeRequest
from mcp_server.steps.verify import verify
from tests.engine.synthetic import load, random_tensors, run, save, write_model, write_two_adapters
from tests.engine.test_adapter_space import UP, Q, deltas

Array = np.ndarray[Any, Any]
WEIGHTS = (0.7, 0.4)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two adapters: both on one matrix, one of them alone on another."""
    write_two_adapters(tmp_path, UP, Q)
    return tmp_path


def recipe(root: Path, method: str, **more: Any) -> str:
    entries = [
        {"model": f"{root}/base+{root}/{name}", "parameters": {"weight": weight, "density": 0.5}}
        for name, weight in zip("ab", WEIGHTS, strict=True)
    ]
    return json.dumps({"merge_method": method, "base_model": f"{root}/base", "models": entries, "dtype": "float32"} | more)


def merge(root: Path, text: str, **settings: Any) -> dict[str, Any]:
    settings = {"seed": 3} | settings
    return merge_adapters(Request(text, root / "out", root / "journal", **settings), lambda *_: None)


def factors(root: Path, name: str, module: str) -> tuple[Array, Array] | None:
    config = json.loads((root / name / "adapter_config.json").read_text("utf-8"))
    stored = load(root / name)
    stem = f"base_model.model.{module}.lora_"
    if f"{stem}A.weight" not in stored:
        return None
    return stored[f"{stem}A.weight"], config["lora_alpha"] / config["r"] * stored[f"{stem}B.weight"]


def cores(root: Path, module: str) -> tuple[Array, Array, list[Array]]:
    """(U, Vᵀ, cores) by their definition."""
    pairs = [factors(root, name, module) for name in "ab"]
    held = [pair for pair in pairs if pair]
    left = np.linalg.svd(np.hstack([b for _, b in held]), full_matrices=False)[0]
    right = np.linalg.svd(np.vstack([a for a, _ in held]), full_matrices=False)[2]
    zero = np.zeros((left.shape[1], len(right)))
    return left, right, [left.T @ pair[1] @ pair[0] @ right.T if pair else zero for pair in pairs]


def by_definition(small: list[Array], method: str) -> Array:
    inputs = [(weight, 0.5 if core.any() else 1.0, core) for weight, core in zip(WEIGHTS, small, strict=True)]
    if method == "task_arithmetic":
        return sum((weight * core for weight, _, core in inputs), np.zeros_like(small[0]))
    cuts = [np.sort(np.abs(core), axis=None)[-max(1, int(density * core.size))] for _, density, core in inputs]
    kept = [np.where(np.abs(core) >= cut, core, 0.0) for cut, core in zip(cuts, small, strict=True)]
    signs = np.sign(sum(weight * core for (weight, _, _), core in zip(inputs, kept, strict=True)))
    agree = [np.where(np.sign(core) == signs, 1.0, 0.0) for core in kept]
    total = sum(weight * core * a for (weight, _, _), core, a in zip(inputs, kept, agree, strict=True))
    share = sum(weight * a for (weight, _, _), a in zip(inputs, agree, strict=True))
    return np.divide(total, share, out=np.zeros_like(total), where=share > 0)


def test_ties_on_the_core_is_its_definition(root: Path) -> None:
    """Of the rank of all factors together, without a base that is read; verified by recomputing it."""
    result = merge(root, recipe(root, "ties"), space="core")
    found = deltas(root)
    assert sorted(found) == [f"{Q}.weight", f"{UP}.weight"]
    for module in (UP, Q):
        left, right, small = cores(root, module)
        want = left @ by_definition(small, "ties") @ right
        assert np.allclose(found[f"{module}.weight"], want, atol=1e-5 * np.abs(want).max()), module
    assert result["relative_error"] == pytest.approx(0, abs=1e-6)
    config = json.loads((root / "out" / "adapter_config.json").read_text("utf-8"))
    assert {config["r"], *config["rank_pattern"].values()} == {5, 2}
    assert verify(root / "out", full=True).verdict == "verified"


@pytest.mark.parametrize("method", ["ties", "dare_ties", "della_linear", "breadcrumbs", "sce", "task_arithmetic"])
@pytest.mark.parametrize("space", ["core", "shared"])
def test_an_output_of_a_chosen_rank_states_its_error_and_is_verified(root: Path, method: str, space: str) -> None:
    result = merge(root, recipe(root, method), space=space, rank=3)
    for key, value in load(root / "out").items():
        assert min(value.shape) <= 3, key
    said = json.loads((root / "out" / "approximation.json").read_text("utf-8"))
    assert (said["space"], said["relative_error"]) == (space, result["relative_error"])
    assert 0 < result["relative_error"] < 1
    found = verify(root / "out", full=True)
    assert found.verdict == "verified", found


def test_a_shared_subspace_holds_most_of_all_sources(root: Path) -> None:
    """Of an exact sum, by the definition: the cores are projected on leading eigenvectors of their squares, then added."""
    result = merge(root, recipe(root, "task_arithmetic"), space="shared", rank=3)
    left, right, small = cores(root, UP)
    tall, flat = (np.linalg.eigh(sum(m @ m.T for m in each))[1][:, -3:] for each in (small, [m.T for m in small]))
    whole = by_definition(small, "task_arithmetic")
    want = left @ tall @ by_definition([tall.T @ m @ flat for m in small], "task_arithmetic") @ flat.T @ right
    assert np.allclose(deltas(root)[f"{UP}.weight"], want, atol=1e-5 * np.abs(want).max())
    error = json.loads((root / "out" / "approximation.json").read_text("utf-8"))["tensors"][f"{UP}.weight"]
    assert error == pytest.approx(np.linalg.norm(left @ whole @ right - want) / np.linalg.norm(whole), rel=1e-4)
    assert result["relative_error"] >= 0


def test_an_exact_sum_keeps_its_rank_unless_one_is_asked_for(root: Path) -> None:
    text = recipe(root, "task_arithmetic")
    result = merge(root, text, space="core")
    run(text, root / "full")
    before, after = load(root / "base"), load(root / "full")
    assert result["relative_error"] is None
    for name, delta in deltas(root).items():
        assert np.allclose(before[name] + delta, after[name], atol=1e-5), name


def test_factors_stored_in_16_bits_are_no_fault(root: Path) -> None:
    """Without a rank nothing is left out, and rounding the factors is all that there is of an error."""
    merge(root, recipe(root, "ties", dtype="bfloat16"), space="core")
    found = verify(root / "out", full=True)
    assert found.verdict == "verified", found


def test_a_change_of_the_output_is_found(root: Path) -> None:
    merge(root, recipe(root, "ties"), space="core")
    file = root / "out" / "adapter_model.safetensors"
    data = bytearray(file.read_bytes())
    data[-40:] = bytes(40)
    file.write_bytes(bytes(data))
    assert verify(root / "out", full=True).verdict == "failed"


def test_what_has_no_core_is_refused(root: Path) -> None:
    with pytest.raises(Malformed, match="needs a rank"):
        plan_adapter(recipe(root, "ties"), None, space="shared")
    write_model(root / "full", random_tensors(5), "float32")
    body = json.loads(recipe(root, "ties"))
    body["models"].append({"model": f"{root}/full", "parameters": {"weight": 1.0}})
    with pytest.raises(Unsupported, match="is a full model and has no factors"):
        plan_adapter(json.dumps(body), 3, space="core")
    with pytest.raises(BadInput, match="--space core is for adapters"):
        choose(MergeRequest.of({"recipe": recipe(root, "ties"), "out": str(root / "x"), "space": "core"}))
    with pytest.raises(BadInput, match="--rank 3 is for adapters"):
        choose(MergeRequest.of({"recipe": recipe(root, "ties"), "out": str(root / "x"), "rank": 3}))
    bound = peak_anon_of_adapter(plan_adapter(recipe(root, "ties"), 3, space="core"), 1)
    assert "cores of factors" in bound


@pytest.mark.parametrize("method", ["ties", "task_arithmetic"])
def test_what_an_adapter_stores_whole_is_merged_as_in_a_model(root: Path, method: str) -> None:
    file, said = root / "b" / "adapter_model.safetensors", root / "b" / "adapter_config.json"
    head = load(root / "base")["lm_head.weight"]
    save(file, load(root / "b") | {"base_model.model.lm_head.weight": head + 1}, "float32")
    config = json.loads(said.read_text("utf-8")) | {"modules_to_save": ["lm_head"]}
    said.write_text(json.dumps(config), encoding="utf-8")
    merge(root, recipe(root, method), space="core")
    run(recipe(root, method), root / "full")
    assert np.allclose(load(root / "out")["base_model.model.lm_head.weight"], load(root / "full")["lm_head.weight"], atol=1e-6)
    found = verify(root / "out", full=True)
    assert found.verdict == "verified", found
