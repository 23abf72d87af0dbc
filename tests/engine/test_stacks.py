"""The same mixture of experts stored in its two forms: a stack of matrices, and one matrix after the other."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from mcp_server.errors import Incompatible
from mcp_server.steps.verify import verify
from tests.engine.synthetic import load, run, save, write_adapter, write_model

HIDDEN, INNER, EXPERTS = 6, 4, 3
CONFIG = {
    "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "hidden_size": HIDDEN, "moe_intermediate_size": INNER,
    "num_experts": EXPERTS, "num_hidden_layers": 1, "vocab_size": 20, "tie_word_embeddings": False,
}  # fmt: skip
STEM = "model.layers.0.mlp.experts"


def numbers(seed: int) -> dict[str, np.ndarray]:
    """One by one."""
    generator = np.random.default_rng(seed)
    shapes = {"model.embed_tokens.weight": (20, HIDDEN), "lm_head.weight": (20, HIDDEN), "model.norm.weight": (HIDDEN,)}
    for expert in range(EXPERTS):
        shapes |= {f"{STEM}.{expert}.{part}_proj.weight": (INNER, HIDDEN) for part in ("gate", "up")}
        shapes[f"{STEM}.{expert}.down_proj.weight"] = (HIDDEN, INNER)
    return {name: generator.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def stacked(table: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """As transformers holds them in memory."""
    part = {kind: [table[f"{STEM}.{e}.{kind}_proj.weight"] for e in range(EXPERTS)] for kind in ("gate", "up", "down")}
    both = np.stack([np.concatenate(pair) for pair in zip(part["gate"], part["up"], strict=True)])
    rest = {name: values for name, values in table.items() if STEM not in name}
    return rest | {f"{STEM}.gate_up_proj": both, f"{STEM}.down_proj": np.stack(part["down"])}


def model(folder: Path, table: dict[str, np.ndarray]) -> Path:
    return write_model(folder, table, "float32", config=CONFIG)


def recipe(base: Path, *sources: str) -> str:
    models = [{"model": source, "parameters": {"weight": 0.5}} for source in sources]
    return json.dumps({"merge_method": "task_arithmetic", "base_model": str(base), "models": models, "dtype": "float32"})


@pytest.mark.parametrize("fused", ["base", "one", "two", "base one"])
def test_stacks_and_single_matrices_merge_into_single_matrices(tmp_path: Path, fused: str) -> None:
    tables = {name: numbers(seed) for seed, name in enumerate(("base", "one", "two"))}
    folders = {n: model(tmp_path / n, stacked(table) if n in fused.split() else table) for n, table in tables.items()}
    result = run(recipe(folders["base"], str(folders["one"]), str(folders["two"])), tmp_path / "out")
    base, one, two = (tables[name] for name in ("base", "one", "two"))
    expected = {name: values + 0.5 * (one[name] - values) + 0.5 * (two[name] - values) for name, values in base.items()}
    out = load(tmp_path / "out")
    assert sorted(out) == sorted(expected)
    assert [name for name, values in expected.items() if not np.allclose(out[name], values, atol=1e-5)] == []
    said = [text for text in result["warnings"] if "stacks of matrices" in text]
    assert [str(folders[name]) in "".join(said) for name in tables] == [name in fused.split() for name in tables]


def test_an_adapter_of_the_stacks_is_merged_where_they_are_taken_apart(tmp_path: Path) -> None:
    base, one = numbers(0), numbers(1)
    generator = np.random.default_rng(2)
    a, b = generator.standard_normal((2, HIDDEN)), generator.standard_normal((INNER, 2))
    module = f"{STEM}.1.up_proj"
    lora = write_adapter(tmp_path / "lora", {f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b}, r=2, lora_alpha=2)
    folder = model(tmp_path / "base", stacked(base))
    run(recipe(folder, f"{folder}+{lora}", str(model(tmp_path / "one", one))), tmp_path / "out")
    expected = {name: values + 0.5 * (one[name] - values) for name, values in base.items()}
    expected[f"{module}.weight"] = expected[f"{module}.weight"] + 0.5 * (b @ a)
    out = load(tmp_path / "out")
    assert [name for name, values in expected.items() if not np.allclose(out[name], values, atol=1e-5)] == []


def test_models_that_are_all_stacked_stay_so(tmp_path: Path) -> None:
    base, one = (model(tmp_path / name, stacked(numbers(seed))) for seed, name in enumerate(("base", "one")))
    run(recipe(base, str(one)), tmp_path / "out")
    assert f"{STEM}.gate_up_proj" in load(tmp_path / "out")


def test_other_numbers_of_experts_are_refused(tmp_path: Path) -> None:
    few = stacked(numbers(1))
    few[f"{STEM}.gate_up_proj"] = few[f"{STEM}.gate_up_proj"][:2]
    few[f"{STEM}.down_proj"] = few[f"{STEM}.down_proj"][:2]
    text = recipe(model(tmp_path / "base", numbers(0)), str(model(tmp_path / "one", few)))
    with pytest.raises(Incompatible, match="experts"):
        run(text, tmp_path / "out")


@pytest.mark.parametrize("fused", ["base", "one"])
def test_the_merge_is_verified_and_a_swapped_expert_is_found(tmp_path: Path, fused: str) -> None:
    tables = {name: numbers(seed) for seed, name in enumerate(("base", "one"))}
    folders = {n: model(tmp_path / n, stacked(table) if n == fused else table) for n, table in tables.items()}
    run(recipe(folders["base"], str(folders["one"])), tmp_path / "out")
    right = verify(tmp_path / "out", full=True)
    assert {check.name for check in right.checks if check.passed is False} == set()
    out = load(tmp_path / "out")
    first, second = f"{STEM}.0.up_proj.weight", f"{STEM}.1.up_proj.weight"
    out[first], out[second] = out[second], out[first]
    save(tmp_path / "out" / "model.safetensors", out, "float32")
    wrong = verify(tmp_path / "out", full=True)
    assert wrong.verdict == "failed"
    assert any(first in check.detail for check in wrong.checks if check.passed is False)
