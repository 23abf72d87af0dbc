"""What a LoRA adapter adds: folded by hand in float64, and by PEFT itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mcp_server.errors import Incompatible, Malformed, MergingError, NotAModel, Unsupported
from mcp_server.formats.checkpoint import open_checkpoint
from mcp_server.formats.lora import open_adapter
from tests.engine.synthetic import load, low_rank, random_tensors, run, write_adapter, write_model

UP = "model.layers.1.mlp.up_proj"
Q = "model.layers.0.self_attn.q_proj"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_model(tmp_path / "base", random_tensors(0), "float32")


def fold(base: Path, adapter: Path, tmp_path: Path) -> dict[str, np.ndarray]:
    """base+adapter through the engine, at float32."""
    body = {"merge_method": "passthrough", "models": [{"model": f"{base}+{adapter}"}], "dtype": "float32"}
    run(json.dumps(body), tmp_path / "folded")
    return load(tmp_path / "folded")


def changed(folded: dict[str, np.ndarray], base: Path) -> dict[str, np.ndarray]:
    """What folding added, for the tensors that it changed."""
    before = load(base)
    return {name: values - before[name] for name, values in folded.items() if np.any(values != before[name])}


@pytest.mark.parametrize(
    ("config", "scale"),
    [
        ({}, 4 / 2),
        ({"lora_alpha": 3}, 3 / 2),
        ({"use_rslora": True}, 4 / 2**0.5),
        ({"alpha_pattern": {"up_proj": 10}}, 10 / 2),
        ({"rank_pattern": {r"model\.layers\.1\.mlp\.up_proj": 2}, "r": 8}, 4 / 2),
        ({"alpha_pattern": {"down_proj": 10}}, 4 / 2),
    ],
)
def test_the_scale_is_alpha_over_rank_with_patterns_and_rank_stabilisation(
    base: Path, tmp_path: Path, config: dict[str, Any], scale: float
) -> None:
    factors = low_rank(1, {UP: (16, 12)}, 2)
    adapter = write_adapter(tmp_path / "lora", factors, **config)
    delta = changed(fold(base, adapter, tmp_path), base)
    expected = scale * factors[f"{UP}.lora_B.weight"] @ factors[f"{UP}.lora_A.weight"]
    assert list(delta) == [f"{UP}.weight"]
    assert np.allclose(delta[f"{UP}.weight"], expected, atol=1e-5)


def test_an_embedding_adapter_is_transposed(base: Path, tmp_path: Path) -> None:
    generator = np.random.default_rng(5)
    a, b = generator.standard_normal((2, 20)), generator.standard_normal((12, 2))
    name = "model.embed_tokens"
    adapter = write_adapter(tmp_path / "lora", {f"{name}.lora_embedding_A": a, f"{name}.lora_embedding_B": b})
    delta = changed(fold(base, adapter, tmp_path), base)
    assert np.allclose(delta[f"{name}.weight"], 2 * (b @ a).T, atol=1e-5)


@pytest.mark.parametrize("declared", [True, False])
def test_a_weight_stored_in_by_out_is_recognised_by_its_shape(tmp_path: Path, declared: bool) -> None:
    tensors = random_tensors(0)
    tensors[f"{UP}.weight"] = tensors[f"{UP}.weight"].T.copy()
    base = write_model(tmp_path / "base", tensors, "float32")
    factors = low_rank(1, {UP: (16, 12)}, 2)
    adapter = write_adapter(tmp_path / "lora", factors, fan_in_fan_out=declared)
    delta = changed(fold(base, adapter, tmp_path), base)
    expected = 2 * (factors[f"{UP}.lora_B.weight"] @ factors[f"{UP}.lora_A.weight"]).T
    assert np.allclose(delta[f"{UP}.weight"], expected, atol=1e-5)


@pytest.mark.parametrize("known", [True, False])
def test_a_square_weight_follows_the_class_and_the_flag_where_no_class_is_known(base: Path, tmp_path: Path, known: bool) -> None:
    factors = low_rank(1, {Q: (12, 12)}, 2)
    adapter = write_adapter(tmp_path / "lora", factors, fan_in_fan_out=True)
    if not known:
        config = json.loads((base / "config.json").read_text("utf-8"))
        (base / "config.json").write_text(json.dumps(config | {"architectures": ["OwnModel"], "model_type": "own"}), "utf-8")
    delta = changed(fold(base, adapter, tmp_path), base)
    update = 2 * factors[f"{Q}.lora_B.weight"] @ factors[f"{Q}.lora_A.weight"]
    expected = update if known else update.T
    assert np.allclose(delta[f"{Q}.weight"], expected, atol=1e-5)


@pytest.mark.parametrize("key", ["lm_head.weight", "lm_head.modules_to_save.weight", "lm_head.modules_to_save.default.weight"])
def test_modules_to_save_and_biases_replace_the_base(base: Path, tmp_path: Path, key: str) -> None:
    head, bias = np.full((20, 12), 3.0), np.full(12, -1.0)
    stored = low_rank(1, {UP: (16, 12)}, 2) | {key: head, f"{Q}.base_layer.bias": bias}
    folded = fold(base, write_adapter(tmp_path / "lora", stored, modules_to_save=["lm_head"], bias="all"), tmp_path)
    assert (folded["lm_head.weight"] == 3).all()
    assert (folded[f"{Q}.bias"] == -1).all()
    assert sorted(changed(folded, base)) == sorted(["lm_head.weight", f"{Q}.bias", f"{UP}.weight"])


def test_an_adapter_of_a_tied_embedding_leaves_the_head_as_it_was_trained(tmp_path: Path) -> None:
    base = write_model(tmp_path / "base", random_tensors(0, head=False), "float32")
    generator = np.random.default_rng(5)
    a, b = generator.standard_normal((2, 20)), generator.standard_normal((12, 2))
    adapter = write_adapter(
        tmp_path / "lora", {"model.embed_tokens.lora_embedding_A": a, "model.embed_tokens.lora_embedding_B": b}
    )
    folded = fold(base, adapter, tmp_path)
    embedding = load(base)["model.embed_tokens.weight"]
    assert np.allclose(folded["model.embed_tokens.weight"], embedding + 2 * (b @ a).T, atol=1e-5)
    assert np.array_equal(folded["lm_head.weight"], embedding)
    assert json.loads((tmp_path / "folded" / "config.json").read_text("utf-8"))["tie_word_embeddings"] is False


@pytest.mark.parametrize(
    ("config", "error", "match"),
    [
        ({"use_dora": True}, Malformed, "has no lora_magnitude_vector"),
        ({"peft_type": "OFT"}, Unsupported, "is a OFT adapter"),
        ({"peft_type": "PROMPT_TUNING"}, Unsupported, "changes no weight"),
        ({"lora_bias": True}, Unsupported, "uses lora_bias"),
        ({"init_lora_weights": "pissa_niter_16"}, Unsupported, "changes the base weights too"),
        ({"layer_replication": [[0, 2]]}, Unsupported, "uses layer_replication"),
        ({"r": 3}, Malformed, "the config says r=3"),
    ],
)
def test_what_cannot_be_folded_is_refused_by_name(
    base: Path, tmp_path: Path, config: dict[str, Any], error: type[MergingError], match: str
) -> None:
    adapter = write_adapter(tmp_path / "lora", low_rank(1, {UP: (16, 12)}, 2), **config)
    with pytest.raises(error, match=match) as caught:
        open_adapter(str(adapter), open_checkpoint(str(base)).tensors)
    assert caught.value.next_step


def test_keys_that_match_nothing_are_an_error(base: Path, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "lora", low_rank(1, {UP: (16, 12), "model.layers.9.mlp.up_proj": (16, 12)}, 2))
    with pytest.raises(Incompatible, match=r"1 of 2 modules .*are not in the base, for instance model\.layers\.9"):
        open_adapter(str(adapter), open_checkpoint(str(base)).tensors)


def test_an_update_of_the_wrong_size_is_an_error(base: Path, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "lora", low_rank(1, {UP: (16, 13)}, 2))
    with pytest.raises(Incompatible, match=r"makes an update of \[16, 13\], the base's weight is \[16, 12\]"):
        open_adapter(str(adapter), open_checkpoint(str(base)).tensors)


def test_a_pickle_adapter_is_refused_with_the_command_that_converts(base: Path, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "lora", low_rank(1, {UP: (16, 12)}, 2))
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    with pytest.raises(NotAModel, match=r"adapter_model\.bin is a pickle") as caught:
        open_adapter(str(adapter), open_checkpoint(str(base)).tensors)
    assert "save_file" in caught.value.next_step


def test_a_bf16_base_does_not_round_the_delta(tmp_path: Path) -> None:
    """A delta far below bf16's resolution reaches a float32 output whole, and rounding_loss tells that bf16 would lose it."""
    base = write_model(tmp_path / "base", {k: np.ones_like(v) for k, v in random_tensors(0).items()}, "bfloat16")
    factors = {k: 1e-2 * v for k, v in low_rank(1, {UP: (16, 12)}, 2).items()}
    adapter = write_adapter(tmp_path / "lora", factors)
    entry = {"model": f"{base}+{adapter}", "parameters": {"weight": 1}}
    results = {}
    for dtype in ("float32", "bfloat16"):
        body = {
            "merge_method": "task_arithmetic",
            "base_model": str(base),
            "models": [entry],
            "dtype": "bfloat16",
            "out_dtype": dtype,
        }
        results[dtype] = run(json.dumps(body), tmp_path / dtype)
    source = f"{base}+{adapter}"
    assert results["float32"]["landed"][source] == pytest.approx(1, abs=1e-3)
    assert results["float32"]["rounding_loss"][source] == 0
    assert results["bfloat16"]["rounding_loss"][source] == 1
    assert results["bfloat16"]["landed"][source] == 0
    assert results["float32"]["warnings"][:-1] == []
    assert "100% of what" in results["bfloat16"]["warnings"][0]
    assert "out_dtype: float32" in results["bfloat16"]["warnings"][0]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "config",
    [
        {"r": 3, "target_modules": ["q_proj", "up_proj"]},
        {
            "r": 3,
            "target_modules": ["q_proj", "down_proj"],
            "use_rslora": True,
            "rank_pattern": {"q_proj": 5},
            "alpha_pattern": {"down_proj": 7},
        },
        {"r": 4, "target_modules": ["embed_tokens", "lm_head", "v_proj"]},
        {"r": 2, "target_modules": ["k_proj"], "bias": "all", "modules_to_save": ["lm_head"]},
    ],
    ids=["plain", "patterns", "embeddings", "saved"],
)
def test_folding_agrees_with_peft(tmp_path: Path, config: dict[str, Any]) -> None:
    import torch
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import AutoModelForCausalLM, Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    settings = Qwen2Config(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, vocab_size=40,
        tie_word_embeddings=False,
    )  # fmt: skip
    Qwen2ForCausalLM(settings).float().save_pretrained(tmp_path / "base")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), LoraConfig(lora_alpha=5, **config))
    for name, parameter in model.named_parameters():
        if "lora_" in name or "modules_to_save" in name or name.endswith("bias"):
            parameter.data.normal_(0, 0.1)
    model.save_pretrained(tmp_path / "lora")
    fresh = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    PeftModel.from_pretrained(fresh, tmp_path / "lora").merge_and_unload().save_pretrained(tmp_path / "peft")
    ours, theirs = fold(tmp_path / "base", tmp_path / "lora", tmp_path), load(tmp_path / "peft")
    assert sorted(ours) == sorted(theirs)
    assert changed(theirs, tmp_path / "base")
    for name, values in theirs.items():
        assert np.allclose(ours[name], values, rtol=1e-6, atol=1e-6), name
