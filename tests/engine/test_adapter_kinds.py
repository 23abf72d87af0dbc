"""Every kind of adapter that is merged, beside PEFT's own merge of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mcp_server.steps.verify import verify
from tests.engine.synthetic import load, run

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.filterwarnings("ignore")  # PEFT warns of what it corrects by itself

ATTENTION = ["q_proj", "v_proj"]
SIZE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 64,
}


def merged_by_both(config: Any, tmp_path: Path, model: Any) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """(PEFT's merge as it would be stored, ours) for an adapter of noise on this model."""
    folded_by_peft(config, tmp_path, model)
    recipe = {"merge_method": "passthrough", "models": [{"model": f"{tmp_path}/base+{tmp_path}/adapter"}], "dtype": "float32"}
    run(json.dumps(recipe), tmp_path / "ours")
    return load(tmp_path / "peft"), load(tmp_path / "ours")


def folded_by_peft(config: Any, tmp_path: Path, model: Any) -> None:
    """A base, an adapter of noise on it, and PEFT's merge of the two."""
    torch.manual_seed(0)
    model.save_pretrained(tmp_path / "base")
    adapted = peft.get_peft_model(model, config)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    adapted.save_pretrained(tmp_path / "adapter")
    adapted.merge_and_unload().save_pretrained(tmp_path / "peft")


def agree(theirs: dict[str, np.ndarray], ours: dict[str, np.ndarray]) -> list[str]:
    """Tensors that differ."""
    assert sorted(theirs) == sorted(ours)
    return [name for name, values in theirs.items() if not np.allclose(values, ours[name], atol=2e-5)]


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("LoraConfig", {"r": 4, "use_dora": True, "target_modules": ATTENTION}),
        ("LoraConfig", {"r": 4, "trainable_token_indices": [3, 7], "target_modules": ATTENTION}),
        ("LoHaConfig", {"r": 4, "alpha": 6, "target_modules": ATTENTION}),
        ("LoKrConfig", {"r": 2, "alpha": 6, "target_modules": ATTENTION}),
        ("VeraConfig", {"r": 4, "target_modules": ["q_proj", "o_proj"]}),
        ("IA3Config", {"target_modules": ["k_proj", "down_proj"], "feedforward_modules": ["down_proj"]}),
    ],
    ids=["dora", "tokens", "loha", "lokr", "vera", "ia3"],
)
def test_a_kind_is_merged_as_peft_merges_it(kind: str, settings: dict[str, Any], tmp_path: Path) -> None:
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZE))
    assert agree(*merged_by_both(getattr(peft, kind)(**settings), tmp_path, model)) == []
    assert [check for check in verify(tmp_path / "ours", full=True).checks if check.passed is not True] == []


def test_fused_experts_are_merged_into_the_matrices_that_are_stored_one_by_one(tmp_path: Path) -> None:
    config = transformers.Qwen3MoeConfig(**SIZE, moe_intermediate_size=24, num_experts=4, num_experts_per_tok=2)
    lora = peft.LoraConfig(r=4, target_modules="all-linear")
    assert agree(*merged_by_both(lora, tmp_path, transformers.Qwen3MoeForCausalLM(config))) == []


def test_a_mixed_gpt2_adapter_turns_only_the_layers_that_store_in_by_out(tmp_path: Path) -> None:
    config = transformers.GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=64, n_positions=32, tie_word_embeddings=False)
    lora = peft.LoraConfig(r=4, target_modules=["c_attn", "c_proj", "lm_head"])
    assert agree(*merged_by_both(lora, tmp_path, transformers.GPT2LMHeadModel(config))) == []


def test_ia3_scales_the_bias_of_what_it_scales(tmp_path: Path) -> None:
    model = transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**SIZE))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_()
    config = peft.IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"])
    assert agree(*merged_by_both(config, tmp_path, model)) == []


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("VeraConfig", {"r": 4, "target_modules": ["c_attn"]}),
        ("LoraConfig", {"r": 4, "use_dora": True, "target_modules": ["c_attn", "c_fc"]}),
    ],
    ids=["vera", "dora"],
)
def test_what_peft_folds_into_weights_stored_in_by_out_is_verified(kind: str, settings: dict[str, Any], tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    def recomputed() -> list[bool | None]:
        given = {"base": str(tmp_path / "base"), "sources": [str(tmp_path / "adapter")]}
        return [check.passed for check in verify(tmp_path / "peft", full=True, **given).checks if check.name == "recomputed"]

    config = transformers.GPT2Config(n_embd=32, n_layer=1, n_head=4, vocab_size=64, n_positions=32)
    folded_by_peft(getattr(peft, kind)(**settings), tmp_path, transformers.GPT2LMHeadModel(config))
    assert recomputed() == [True]
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    save_file({name: -part if "lambda_d" in name or "lora_B" in name else part for name, part in load_file(file).items()}, file)
    assert recomputed() == [False]
