"""Whole packed models as transformers saves and loads them, and adapters on them as PEFT merges them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from mcp_server.engine.adapter_space import merge_adapters
from mcp_server.engine.request import Request
from mcp_server.errors import Malformed, Unsupported
from mcp_server.steps.verify import verify
from tests.engine.synthetic import load, run

pytestmark = pytest.mark.filterwarnings("ignore")
CONFIG = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2,
    "vocab_size": 50, "tie_word_embeddings": False,
}  # fmt: skip


def recipe(base: Path, *models: str | Path) -> str:
    entries = [{"model": str(model), "parameters": {"weight": 0.5}} for model in models]
    return json.dumps({"merge_method": "task_arithmetic", "base_model": str(base), "models": entries, "dtype": "float32"})


@pytest.mark.slow
def test_a_torchao_model_saved_by_transformers(tmp_path: Path) -> None:
    """With its embedding and head packed too."""
    from torchao.quantization import Int8WeightOnlyConfig

    torch.manual_seed(0)
    plain = transformers.LlamaForCausalLM(transformers.LlamaConfig(**CONFIG))
    plain.save_pretrained(tmp_path / "plain")
    packed = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "plain",
        quantization_config=transformers.TorchAoConfig(Int8WeightOnlyConfig(), include_input_output_embeddings=True),
    )
    packed.save_pretrained(tmp_path / "packed")
    text = recipe(tmp_path / "packed", tmp_path / "plain")
    run(text, tmp_path / "out")
    state, full = packed.state_dict(), plain.state_dict()
    base = {name: value if type(value) is torch.Tensor else value.dequantize() for name, value in state.items()}
    assert sum(type(value) is not torch.Tensor for value in state.values()) == 8
    merged = load(tmp_path / "out")
    assert set(merged) == set(base)
    for name, value in base.items():
        assert torch.allclose(torch.from_numpy(merged[name]).float(), (value + full[name]) / 2, atol=1e-6), name
    assert verify(tmp_path / "out", recipe=text, full=True).verdict == "verified"


@pytest.fixture
def gpt_oss(tmp_path: Path) -> Path:
    """A tiny gpt-oss whose experts are MXFP4 as it is published: blocks and scales, each expert turned."""
    torch.manual_seed(0)
    more = {"num_local_experts": 3, "num_experts_per_tok": 2, "head_dim": 16, "layer_types": ["full_attention"]}
    model = transformers.GptOssForCausalLM(transformers.GptOssConfig(**CONFIG | more))
    folder = tmp_path / "oss"
    model.save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    for name in [name for name in tensors if name.endswith(("gate_up_proj", "down_proj"))]:
        experts, inputs, outputs = tensors.pop(name).shape
        tensors[f"{name}_blocks"] = torch.randint(0, 256, (experts, outputs, inputs // 32, 16), dtype=torch.uint8)
        tensors[f"{name}_scales"] = torch.randint(118, 124, (experts, outputs, inputs // 32), dtype=torch.uint8)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text("utf-8"))
    config["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def unpacked(folder: Path) -> transformers.PreTrainedModel:
    wanted = transformers.Mxfp4Config(dequantize=True)
    return transformers.AutoModelForCausalLM.from_pretrained(folder, quantization_config=wanted, dtype=torch.float32).float()


def adapter(text: str, out: Path, rank: int | None = None) -> None:
    merge_adapters(Request(text, out, out.with_suffix(".journal"), rank=rank), lambda *_: None)


def trained(base: Path, folder: Path, seed: int, rank: int, *parameters: str) -> dict[str, torch.Tensor]:
    """An adapter on the attention and on stacks of experts, with random factors; returns what PEFT merges into the base."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    tuned = get_peft_model(
        unpacked(base), LoraConfig(r=rank, lora_alpha=4, target_modules=["q_proj"], target_parameters=[*parameters])
    )
    for name, value in tuned.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(value, std=0.2)
    tuned.save_pretrained(folder)
    return dict(tuned.merge_and_unload().state_dict())


def test_two_adapters_that_train_experts_become_one_that_peft_loads(tmp_path: Path, gpt_oss: Path) -> None:
    """Of other ranks, the second with a negative weight; the base is packed, and PEFT's own combination refuses experts."""
    from peft import PeftModel

    both = ("mlp.experts.gate_up_proj", "mlp.experts.down_proj")
    one = trained(gpt_oss, tmp_path / "one", 1, 2, *both)
    two = trained(gpt_oss, tmp_path / "two", 2, 3, *both)
    base = unpacked(gpt_oss).state_dict()
    body = json.loads(recipe(gpt_oss, *(f"{gpt_oss}+{tmp_path / name}" for name in ("one", "two"))))
    body["models"][1]["parameters"]["weight"] = -0.25
    adapter(json.dumps(body), tmp_path / "out")
    merged = PeftModel.from_pretrained(unpacked(gpt_oss), tmp_path / "out").merge_and_unload().state_dict()
    changed = [name for name, value in base.items() if not torch.equal(value, one[name])]
    assert len(changed) == 3
    for name, value in base.items():
        wanted = value.double() + 0.5 * (one[name].double() - value) - 0.25 * (two[name].double() - value)
        assert torch.allclose(merged[name].double(), wanted, atol=1e-5), name
    assert verify(tmp_path / "out", recipe=json.dumps(body), full=True).verdict == "verified"


def test_experts_that_no_one_adapter_can_hold_are_refused(tmp_path: Path, gpt_oss: Path) -> None:
    trained(gpt_oss, tmp_path / "one", 1, 2, "mlp.experts.gate_up_proj")
    trained(gpt_oss, tmp_path / "two", 2, 2, "mlp.experts.down_proj")
    text = recipe(gpt_oss, *(f"{gpt_oss}+{tmp_path / name}" for name in ("one", "two")))
    with pytest.raises(Unsupported, match="different parameters"):
        adapter(text, tmp_path / "out")
    ties = json.loads(text) | {"merge_method": "ties", "parameters": {"density": 0.5}}
    with pytest.raises(Unsupported, match=r"stack of experts .* ties does not"):
        adapter(json.dumps(ties), tmp_path / "out", rank=4)


def test_an_expert_adapter_on_mxfp4_is_what_peft_merges(tmp_path: Path, gpt_oss: Path, small_blocks: None) -> None:
    whole = trained(gpt_oss, tmp_path / "adapter", 1, 2, "mlp.experts.gate_up_proj")
    text = recipe(gpt_oss, f"{gpt_oss}+{tmp_path / 'adapter'}", gpt_oss)
    run(text, tmp_path / "out")
    base = unpacked(gpt_oss).state_dict()
    merged = load(tmp_path / "out")
    assert set(merged) == set(base)
    changed = [name for name, value in base.items() if not torch.equal(value, whole[name])]
    assert sorted(name.rpartition("layers.0.")[2] for name in changed) == ["mlp.experts.gate_up_proj", "self_attn.q_proj.weight"]
    for name, value in base.items():
        wanted = value.double() + 0.5 * (whole[name].double() - value.double())
        assert torch.allclose(torch.from_numpy(merged[name]).double(), wanted, atol=1e-5), name
    found = verify(tmp_path / "out", recipe=text, full=True)
    assert found.verdict == "verified", found
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    assert torch.equal(again.state_dict()[changed[0]], torch.from_numpy(merged[changed[0]]).float())


@pytest.mark.parametrize("kind", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_fp8_that_nothing_calls_quantised_is_plain_numbers(tmp_path: Path, kind: torch.dtype) -> None:
    torch.manual_seed(0)
    names = ("model.embed_tokens.weight", "model.layers.0.self_attn.q_proj.weight", "model.norm.weight")
    for name in ("base", "tuned"):
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**CONFIG)).to(torch.bfloat16)
        model.save_pretrained(tmp_path / name)
        stored = load_file(tmp_path / name / "model.safetensors")
        stored |= {key: stored[key].to(kind) for key in names}
        save_file(stored, tmp_path / name / "model.safetensors", {"format": "pt"})
    text = recipe(tmp_path / "base", tmp_path / "tuned")
    said = run(text, tmp_path / "out")["warnings"]
    assert any(f"{names[0]} and 2 more as FP8 without a scale" in line for line in said)
    loaded = [
        transformers.LlamaForCausalLM.from_pretrained(tmp_path / name, dtype=torch.float32).state_dict()
        for name in ("base", "tuned")
    ]
    merged = load(tmp_path / "out")
    for key, values in loaded[0].items():
        assert torch.allclose(torch.from_numpy(merged[key]).float(), (values + loaded[1][key]) / 2, atol=1e-7), key
    found = verify(tmp_path / "out", recipe=text, full=True)
    assert found.verdict == "verified", found


@pytest.mark.parametrize("beside", ["config", "scale"])
def test_a_scale_that_is_promised_has_to_be_there(tmp_path: Path, beside: str) -> None:
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**CONFIG)).to(torch.bfloat16)
    model.save_pretrained(tmp_path / "base")
    stored = load_file(tmp_path / "base" / "model.safetensors")
    word, other = "model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight"
    stored |= {key: stored[key].to(torch.float8_e4m3fn) for key in (word, other)}
    if beside == "scale":
        stored[f"{other}_scale"] = torch.ones(1)
    else:
        config = json.loads((tmp_path / "base" / "config.json").read_text("utf-8"))
        config["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [128, 128]}
        (tmp_path / "base" / "config.json").write_text(json.dumps(config), encoding="utf-8")
    save_file(stored, tmp_path / "base" / "model.safetensors", {"format": "pt"})
    with pytest.raises(Malformed, match="what its codes mean is not known"):
        run(recipe(tmp_path / "base", tmp_path / "base"), tmp_path / "out")
