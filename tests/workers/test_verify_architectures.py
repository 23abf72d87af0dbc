"""Right merges of thirteen architectures under four methods: every one is verified, and loads as its base does."""

import json
from pathlib import Path
from typing import Any

import pytest

from mcp_server.steps.verify import verify
from mcp_server.workers.load_check import differences, model_class
from tests.engine.synthetic import run

pytestmark = pytest.mark.slow
TEXT = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "vocab_size": 100,
}  # fmt: skip
ENCODER = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
IMAGES = ENCODER | {"image_size": 28, "patch_size": 14}
PAIR = {
    "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "vocab_size": 100,
}  # fmt: skip
SPEECH = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1, "num_mel_bins": 8}
FORMS: dict[str, tuple[str, dict[str, Any]]] = {
    "LlamaForCausalLM": ("LlamaConfig", TEXT),
    "Qwen2ForCausalLM": ("Qwen2Config", TEXT),
    "Qwen3ForCausalLM": ("Qwen3Config", TEXT | {"head_dim": 8}),
    "Gemma2ForCausalLM": ("Gemma2Config", TEXT | {"head_dim": 8}),
    "MixtralForCausalLM": ("MixtralConfig", TEXT | {"num_local_experts": 4}),
    "BertForSequenceClassification": ("BertConfig", ENCODER | {"vocab_size": 100}),
    "T5ForConditionalGeneration": (
        "T5Config", {"d_model": 32, "d_ff": 48, "num_layers": 2, "num_heads": 4, "d_kv": 8, "vocab_size": 100},
    ),
    "GPT2LMHeadModel": ("GPT2Config", {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 100, "n_positions": 64}),
    "LlavaForConditionalGeneration": (
        "LlavaConfig",
        {"text_config": TEXT | {"model_type": "llama"}, "vision_config": IMAGES | {"model_type": "clip_vision_model"}},
    ),
    "WhisperForConditionalGeneration": (
        "WhisperConfig", PAIR | SPEECH | {"max_source_positions": 32, "max_target_positions": 32},
    ),
    "ViTForImageClassification": ("ViTConfig", IMAGES),
    "MambaForCausalLM": ("MambaConfig", {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 100}),
    "BartForConditionalGeneration": ("BartConfig", PAIR | {"max_position_embeddings": 32}),
}  # fmt: skip
METHODS: dict[str, dict[str, Any]] = {
    "task_arithmetic": {}, "ties": {"density": 0.5}, "dare_linear": {"density": 0.5}, "slerp": {},
}  # fmt: skip


@pytest.fixture(scope="module", params=FORMS)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base and two fine-tunes of one class."""
    import torch
    import transformers

    config, settings = FORMS[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(0)
    model = getattr(transformers, request.param)(getattr(transformers, config)(**settings))
    for name in ("base", "one", "two"):
        model.save_pretrained(folder / name)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.02)
    return folder


@pytest.mark.parametrize("method", METHODS)
def test_a_right_merge_is_verified(family: Path, tmp_path: Path, method: str) -> None:
    names = ("one",) if method == "slerp" else ("one", "two")
    models = [{"model": str(family / name), "parameters": {"weight": 0.5} | METHODS[method]} for name in names]
    recipe = {"merge_method": method, "base_model": str(family / "base"), "models": models, "dtype": "bfloat16"}
    run(json.dumps(recipe | ({"parameters": {"t": 0.4}} if method == "slerp" else {})), tmp_path / "out")
    found = verify(tmp_path / "out", full=True)
    assert (found.verdict, [check for check in found.checks if check.passed is not True]) == ("verified", [])
    named, _ = model_class(tmp_path / "out")
    assert differences(named, tmp_path / "out", family / "base") == ""
