"""An adapter that stands for a merge of adapters."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mcp_server.engine.adapter_space import merge_adapters
from mcp_server.engine.request import Request
from mcp_server.errors import Malformed, Unsupported
from tests.engine.synthetic import HIDDEN, INTERMEDIATE, load, low_rank, random_tensors, run, write_adapter, write_model

UP, DOWN, Q = "model.layers.1.mlp.up_proj", "model.layers.1.mlp.down_proj", "model.layers.0.self_attn.q_proj"
SHAPES = {UP: (INTERMEDIATE, HIDDEN), DOWN: (HIDDEN, INTERMEDIATE), Q: (HIDDEN, HIDDEN)}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_model(tmp_path / "base", random_tensors(0), "float32")
    write_adapter(tmp_path / "a", low_rank(1, {UP: SHAPES[UP], Q: SHAPES[Q]}, 2), r=2)
    embedding = {"model.embed_tokens.lora_embedding_A": np.ones((3, 20)), "model.embed_tokens.lora_embedding_B": np.ones((12, 3))}
    write_adapter(tmp_path / "b", low_rank(2, {UP: SHAPES[UP], DOWN: SHAPES[DOWN]}, 3) | embedding, r=3, lora_alpha=5)
    return tmp_path


def recipe(root: Path, method: str, **more: Any) -> str:
    entries = [
        {"model": f"{root}/base+{root}/{name}", "parameters": {"weight": weight}} for name, weight in (("a", 0.7), ("b", -0.2))
    ]
    return json.dumps({"merge_method": method, "models": entries, "dtype": "float32"} | more)


def adapter(root: Path, text: str, **settings: Any) -> dict[str, Any]:
    return merge_adapters(Request(text, root / "out", root / "journal", **settings), lambda *_: None)


def deltas(root: Path) -> dict[str, np.ndarray]:
    """ΔW of every module of the merged adapter, by the rules of PEFT."""
    config = json.loads((root / "out" / "adapter_config.json").read_text("utf-8"))
    stored = load(root / "out")
    found = {}
    for key, b in stored.items():
        if "lora_B" in key or "lora_embedding_B" in key:
            a = stored[key.replace("_B", "_A")]
            module = key.removeprefix("base_model.model.").partition(".lora_")[0]
            rank = config["rank_pattern"].get(module, config["r"])
            assert a.shape[0] == b.shape[1] == rank
            delta = config["alpha_pattern"].get(module, config["lora_alpha"]) / rank * b @ a
            found[f"{module}.weight"] = delta.T if "embedding" in key else delta
    return found


@pytest.mark.parametrize(
    ("method", "more"),
    [
        ("linear", {}),
        ("task_arithmetic", {"parameters": {"lambda": 0.5}}),
        ("task_arithmetic", {"parameters": {"normalize": True, "weight": 1}}),
    ],
)
def test_concatenation_is_exact(root: Path, method: str, more: dict[str, Any]) -> None:
    base = {"base_model": f"{root}/base"} if method == "task_arithmetic" else {}
    text = recipe(root, method, **base, **more)
    result = adapter(root, text)
    run(text, root / "full")
    before, after = load(root / "base"), load(root / "full")
    found = deltas(root)
    assert result["relative_error"] is None
    assert sorted(found) == sorted(name for name in after if np.any(after[name] != before[name]))
    for name, delta in found.items():
        assert np.allclose(before[name] + delta, after[name], rtol=1e-6, atol=2e-5), name


def test_an_adapter_that_was_trained_on_another_is_added_to_it(root: Path) -> None:
    """b was trained on base+a: both at weight 1 are one adapter of the base; at −1 b leaves again."""

    def sum_of(base: Path | str, **weights: int) -> str:
        entries = [{"model": f"{base}+{root}/{name}", "parameters": {"weight": weight}} for name, weight in weights.items()]
        return json.dumps({"merge_method": "task_arithmetic", "base_model": str(base), "models": entries, "dtype": "float32"})

    run(sum_of(root / "base", a=1), root / "with_a")
    run(sum_of(root / "with_a", b=1), root / "both")
    adapter(root, sum_of(root / "base", a=1, b=1))
    before, after, found = load(root / "base"), load(root / "both"), deltas(root)
    for name, value in before.items():
        assert np.allclose(value + found.get(name, 0), after[name], rtol=1e-6, atol=2e-5), name
    run(sum_of(root / "both", b=-1), root / "without_b")
    again, with_a = load(root / "without_b"), load(root / "with_a")
    assert all(np.allclose(again[name], value, atol=2e-5) for name, value in with_a.items())


def test_the_config_names_only_the_adapted_modules(root: Path) -> None:
    adapter(root, recipe(root, "linear"))
    config = json.loads((root / "out" / "adapter_config.json").read_text("utf-8"))
    assert config["target_modules"] == sorted([UP, DOWN, Q, "model.embed_tokens"])
    assert (config["r"], config["rank_pattern"]) == (3, {UP: 5, Q: 2})


def test_other_methods_need_a_rank_and_state_their_error(root: Path) -> None:
    text = recipe(root, "ties", base_model=f"{root}/base", parameters={"density": 0.5})
    with pytest.raises(Malformed, match="needs a rank"):
        adapter(root, text)
    run(text, root / "full")
    before, after = load(root / "base"), load(root / "full")
    errors = []
    for rank in (3, 12):
        stated = adapter(root, text, rank=rank)["relative_error"]
        found = deltas(root)
        lost = sum(((after[n] - before[n] - d) ** 2).sum() for n, d in found.items())
        whole = sum(((after[n] - before[n]) ** 2).sum() for n in found)
        assert stated == pytest.approx((lost / whole) ** 0.5, abs=2e-3)
        best = sum((np.linalg.svd(after[n] - before[n])[1][rank:] ** 2).sum() for n in found)
        assert stated == pytest.approx((best / whole) ** 0.5, abs=2e-2)
        errors.append(stated)
    assert errors[0] > errors[1]


def test_what_is_no_adapter_is_refused(root: Path) -> None:
    write_model(root / "full", random_tensors(4), "float32")
    entry = {"model": f"{root}/full", "parameters": {"weight": 1}}
    with pytest.raises(Unsupported, match="is a full model"):
        adapter(root, recipe(root, "linear", models=[*json.loads(recipe(root, "linear"))["models"], entry]))
    with pytest.raises(Unsupported, match="scales the base too"):
        adapter(root, recipe(root, "linear", parameters={"normalize": False}))
    body = json.loads(recipe(root, "linear", parameters={"normalize": False}))
    body["models"][0]["parameters"]["weight"] = [1.2, 0.5]  # right for the embedding, wrong from the second layer on
    with pytest.raises(Unsupported, match=r"sum to 0\.65 \(at model\.layers"):
        adapter(root, json.dumps(body))


@pytest.mark.parametrize("method", ["linear", "ties"])
def test_a_factor_that_is_not_finite_is_named(root: Path, method: str) -> None:
    factors = low_rank(1, {UP: SHAPES[UP]}, 2)
    factors[f"{UP}.lora_B.weight"][0, 0] = np.inf
    write_adapter(root / "c", factors)
    entries = [{"model": f"{root}/base+{root}/{name}", "parameters": {"weight": 1}} for name in ("a", "c")]
    base = {} if method == "linear" else {"base_model": f"{root}/base", "parameters": {"density": 0.5}}
    with pytest.raises(Malformed, match=r"up_proj\.weight of .*c holds values that are not finite"):
        adapter(root, recipe(root, method, models=entries, **base), rank=2)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_peft_loads_it_and_agrees(tmp_path: Path) -> None:
    import torch
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    settings = LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, vocab_size=40,
        tie_word_embeddings=False,
    )  # fmt: skip
    LlamaForCausalLM(settings).float().save_pretrained(tmp_path / "base")
    for name, targets in (("a", ["q_proj", "embed_tokens"]), ("b", ["q_proj", "down_proj"])):
        base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
        model = get_peft_model(base, LoraConfig(r=2 + len(name), lora_alpha=5, target_modules=targets, use_rslora=name == "b"))
        for key, parameter in model.named_parameters():
            if "lora_" in key:
                parameter.data.normal_(0, 0.1)
        model.save_pretrained(tmp_path / name, save_embedding_layers=False)
    text = recipe(tmp_path, "task_arithmetic", base_model=f"{tmp_path}/base")
    adapter(tmp_path, text)
    run(text, tmp_path / "full")
    tokens = torch.arange(12)[None]
    merged = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), tmp_path / "out")
    full = AutoModelForCausalLM.from_pretrained(tmp_path / "full")
    assert torch.allclose(merged(tokens).logits, full(tokens).logits, atol=1e-5)
