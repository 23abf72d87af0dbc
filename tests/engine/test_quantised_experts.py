"""Packed experts, stored one by one or as stacks: as the base, as a source and under an adapter of experts, beside PEFT."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from mcp_server.steps.validate import validate
from mcp_server.steps.verify import verify
from tests.engine.packers import FORMS, Packed, Tensors
from tests.engine.synthetic import run
from tests.engine.test_quantised_models import CONFIG, recipe

pytestmark = pytest.mark.filterwarnings("ignore")
CONFIG_OF_ALL = CONFIG | {"head_dim": 16}


def one_by_one() -> transformers.PreTrainedModel:
    more = {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 32}
    return transformers.Qwen3MoeForCausalLM(transformers.Qwen3MoeConfig(**CONFIG_OF_ALL | more))


def stacked() -> transformers.PreTrainedModel:
    """Llama 4's experts lie turned: (experts, in, out)."""
    more = {"num_local_experts": 3, "intermediate_size_mlp": 96}
    return transformers.Llama4ForCausalLM(transformers.Llama4TextConfig(**CONFIG_OF_ALL | more))


def fp8_stack(name: str, weight: torch.Tensor, scales: str) -> Packed:
    """Scales by blocks of 32 × 32, one an expert (as a list or a stack), or one a column of an expert."""
    if scales == "blocks":
        experts, rows, columns = weight.shape
        scale = weight.reshape(experts, rows // 32, 32, columns // 32, 32).abs().amax((2, 4)) / 448
        spread = scale.repeat_interleave(32, 1).repeat_interleave(32, 2)
    else:
        spread = weight.abs().amax({"columns": 1}.get(scales, (1, 2)), keepdim=True) / 448
        scale = spread.flatten() if scales == "list" else spread
    codes = (weight / spread).to(torch.float8_e4m3fn)
    suffix = "_scale_inv" if scales == "blocks" else "_scale"
    return Packed({name: codes, f"{name}{suffix}": scale.contiguous()}, codes.float() * spread)


def write(folder: Path, model: transformers.PreTrainedModel, form: str) -> transformers.PreTrainedModel:
    """The model with its experts packed, under `folder`; returns the one that it stands for, in float32."""
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(folder)
    stored: Tensors = {}
    values: Tensors = {}
    for name, weight in load_file(folder / "model.safetensors").items():
        if ".experts." in name:
            made = FORMS[form].pack(name, weight) if weight.dim() == 2 else fp8_stack(name, weight, form)
            stored |= {key: part.contiguous() for key, part in made.stored.items()}
            values[name] = made.value.contiguous()
        else:
            stored[name] = values[name] = weight
    plain = folder.with_name(f"{folder.name}-plain")
    model.save_pretrained(plain)
    save_file(values, plain / "model.safetensors", {"format": "pt"})
    save_file(stored, folder / "model.safetensors", {"format": "pt"})
    blocks: dict[str, Any] = {"weight_block_size": [32, 32]} if form in ("blocks", "fp8 blocks") else {}
    said = (FORMS[form].config if form in FORMS else {"quant_method": "fp8"}) | blocks
    config = json.loads((folder / "config.json").read_text("utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": said} if said else config), encoding="utf-8")
    return type(model).from_pretrained(plain, dtype=torch.float32)


@pytest.mark.parametrize(
    ("make", "form"),
    [(one_by_one, form) for form in ("fp8 blocks", "nf4 nested", "int4 groups", "gptq", "awq", "mxfp4")]
    + [(stacked, scales) for scales in ("blocks", "list", "stack", "columns")],
)
def test_packed_experts_as_base_as_source_and_under_an_adapter(tmp_path: Path, small_blocks: None, make: Any, form: str) -> None:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    plain, other = write(tmp_path / "base", make(), form), write(tmp_path / "tuned", make(), form).state_dict()
    base = {name: value.clone() for name, value in plain.state_dict().items()}
    wanted = LoraConfig(
        r=2, lora_alpha=4, target_modules=["q_proj"], target_parameters=["experts.gate_up_proj", "experts.down_proj"]
    )
    tuned = get_peft_model(plain, wanted)
    for name, value in tuned.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(value, std=0.2)
    tuned.save_pretrained(tmp_path / "adapter")
    adapted = tuned.merge_and_unload().state_dict()
    text = recipe(tmp_path / "base", f"{tmp_path / 'base'}+{tmp_path / 'adapter'}", tmp_path / "tuned")
    assert validate(text).ok
    run(text, tmp_path / "out")
    merged = type(plain).from_pretrained(tmp_path / "out", dtype=torch.float32).state_dict()
    assert set(merged) == set(base)
    assert sum(not torch.equal(adapted[name], value) for name, value in base.items()) == 3
    for name in base:
        both = 0.5 * adapted[name].double() + 0.5 * other[name].double()
        assert torch.allclose(merged[name].double(), both, atol=1e-5), name
    found = verify(tmp_path / "out", recipe=text, full=True)
    assert found.verdict == "verified", found
