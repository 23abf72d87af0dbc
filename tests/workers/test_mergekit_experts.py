"""Stacks of experts stored one by one load as the same model, by transformers; files of other models stay as they are."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from mcp_server.formats.safetensors import read_header
from mcp_server.workers.mergekit_experts import store_one_by_one

MAKE = """
import sys, torch
from transformers import MixtralConfig, MixtralForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM
from safetensors.torch import save_file
shape = dict(vocab_size=32, hidden_size=8, intermediate_size=16, num_hidden_layers=2)
shape |= dict(num_attention_heads=2, num_key_value_heads=2)
kinds = {"mixtral": (MixtralForCausalLM, MixtralConfig(num_local_experts=3, **shape)),
         "qwen3_moe": (Qwen3MoeForCausalLM, Qwen3MoeConfig(num_experts=3, moe_intermediate_size=16, head_dim=4, **shape))}
for name, (kind, config) in kinds.items():
    torch.manual_seed(0)
    model = kind(config)
    model.save_pretrained(f"{sys.argv[1]}/{name}-stored")
    config.save_pretrained(f"{sys.argv[1]}/{name}")
    names = list(model.state_dict())
    for number, part in enumerate((names[::2], names[1::2]), 1):
        held = {n: model.state_dict()[n].contiguous() for n in part}
        save_file(held, f"{sys.argv[1]}/{name}/model-{number:05d}-of-00002.safetensors")
"""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of each kind what transformers stores, and its tensors in memory in two files."""
    folder = tmp_path_factory.mktemp("mixtures")
    subprocess.run([sys.executable, "-c", MAKE, str(folder)], check=True, capture_output=True)
    return folder


def tensors(folder: Path) -> dict[str, tuple[tuple[int, ...], bytes]]:
    found = {}
    for file in folder.glob("*.safetensors"):
        header, data = read_header(file), file.read_bytes()
        for name, info in header.tensors.items():
            found[name] = (info.shape, data[header.data_start + info.begin : header.data_start + info.end])
    return found


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["mixtral", "qwen3_moe"])
def test_the_names_and_bytes_are_those_that_transformers_stores(models: Path, kind: str) -> None:
    files = sorted(file.name for file in (models / kind).glob("*.safetensors"))
    held = {name: file for file in files for name in read_header(models / kind / file).tensors}
    index = models / kind / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": held}), encoding="utf-8")
    assert any("experts.gate_up_proj" in name for name in held)
    store_one_by_one(models / kind)
    assert tensors(models / kind) == tensors(models / f"{kind}-stored")
    table = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    assert table == {name: file for file in files for name in read_header(models / kind / file).tensors}


def test_other_models_stay_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "qwen2_moe"}', encoding="utf-8")
    (tmp_path / "model.safetensors").write_bytes(b"not looked at")
    store_one_by_one(tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == b"not looked at"
