"""A merged adapter names modules as the model has them in memory, whatever the base's files call them: so PEFT finds them."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import save_file

from mcp_server.engine.adapter_space import merge_adapters
from mcp_server.engine.request import Request
from tests.engine.synthetic import load

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.filterwarnings("ignore")  # PEFT warns of what it corrects by itself

TEXT = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
VISION = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 16}
IDS = [[3, 1, 4, 1, 5, 9, 2, 6]]


def gemma3(folder: Path) -> Any:
    """transformers stores language_model.model.layers and calls it model.language_model.layers."""
    config = transformers.Gemma3Config(
        text_config=TEXT | {"head_dim": 8, "vocab_size": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
        vision_config=VISION | {"patch_size": 8},
        mm_tokens_per_image=4,
        image_token_id=60,
        boi_token_id=61,
        eoi_token_id=62,
        tie_word_embeddings=False,
    )
    transformers.Gemma3ForConditionalGeneration(config).save_pretrained(folder)
    return transformers.Gemma3ForConditionalGeneration


def gpt2(folder: Path) -> Any:
    """The hub's GPT-2 stores h.0 and its class calls it transformer.h.0."""
    config = transformers.GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=32, vocab_size=64, tie_word_embeddings=False)
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    stored = {name.removeprefix("transformer."): values for name, values in load(folder).items()}
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    return transformers.GPT2LMHeadModel


ADAPTERS: dict[str, dict[str, Any]] = {
    "lora": {"r": 2},
    "rslora": {"r": 3, "use_rslora": True},
    "bias": {"r": 2, "bias": "all"},
    "some": {"r": 2, "target_modules": r".*language_model.*self_attn\.(q|v)_proj|.*h\.1\.attn\.c_attn"},
    "embedding": {"r": 2, "target_modules": ["embed_tokens", "wte"]},
    "saved": {"r": 2, "target_modules": ["embed_tokens", "wte"]},
}


@pytest.mark.parametrize("write", [gemma3, gpt2])
@pytest.mark.parametrize("kind", ADAPTERS)
def test_peft_loads_the_merge_and_it_is_the_sum(write: Any, kind: str, tmp_path: Path) -> None:
    cls = write(tmp_path / "base")
    expected = two_adapters(cls, kind, tmp_path, 0.6)
    merge_two(tmp_path, 0.6)
    agree(cls, expected, tmp_path)


def test_without_its_base_an_embedding_that_the_adapters_hold_is_merged_whole(tmp_path: Path) -> None:
    cls = gpt2(tmp_path / "base")
    expected = two_adapters(cls, "saved", tmp_path, 0.5)
    (tmp_path / "base").rename(tmp_path / "elsewhere")
    merge_two(tmp_path, 0.5)
    (tmp_path / "elsewhere").rename(tmp_path / "base")
    agree(cls, expected, tmp_path)


def two_adapters(cls: Any, kind: str, tmp_path: Path, weight: float) -> Any:
    """Two adapters of noise, and the base with both of PEFT's merges added, each times the weight."""
    torch.manual_seed(0)
    trained = peft.get_peft_model(
        cls.from_pretrained(tmp_path / "base"), peft.LoraConfig(**({"target_modules": "all-linear"} | ADAPTERS[kind]))
    )
    folded = []
    for name in ("a", "b"):
        with torch.no_grad():
            for parameter in trained.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn_like(parameter) * 0.1)
        trained.save_pretrained(tmp_path / name, save_embedding_layers=kind == "saved")
        merged = peft.PeftModel.from_pretrained(cls.from_pretrained(tmp_path / "base"), tmp_path / name).merge_and_unload()
        folded.append(merged.state_dict())
    expected = cls.from_pretrained(tmp_path / "base").eval()
    with torch.no_grad():
        for name, parameter in expected.named_parameters():
            parameter.add_(sum(weight * (one[name] - parameter) for one in folded))
    return expected


def merge_two(tmp_path: Path, weight: float) -> None:
    entries = [{"model": f"{tmp_path}/base+{tmp_path}/{name}", "parameters": {"weight": weight}} for name in ("a", "b")]
    recipe = {"merge_method": "task_arithmetic", "base_model": f"{tmp_path}/base", "models": entries, "dtype": "float32"}
    merge_adapters(Request(json.dumps(recipe), tmp_path / "out", tmp_path / "journal"), lambda *_: None)


def agree(cls: Any, expected: Any, tmp_path: Path) -> None:
    """PEFT loads every tensor of the merged adapter, and the adapted model says what the expected one says."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*missing adapter keys.*")
        ours = peft.PeftModel.from_pretrained(cls.from_pretrained(tmp_path / "base"), tmp_path / "out").eval()
    with torch.inference_mode():
        torch.testing.assert_close(ours(torch.tensor(IDS)).logits, expected(torch.tensor(IDS)).logits, atol=2e-5, rtol=1e-4)
