"""Checkpoints of a few hundred bytes, written by hand: no torch needed."""

from __future__ import annotations

import json
import random
import struct
from pathlib import Path
from typing import Any


def write_safetensors(path: Path, tensors: dict[str, tuple[str, list[int], bytes]]) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = b""
    for name, (dtype, shape, raw) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def bf16(values: list[float]) -> bytes:
    return b"".join(struct.pack("<f", value)[2:] for value in values)


def write_model(folder: Path, seed: int = 0) -> Path:
    """A one-layer Llama of 8 dimensions, bf16. Seed 0 is the base; every other seed is a fine-tune of it."""
    folder.mkdir(parents=True)
    common, own = random.Random(0), random.Random(seed)
    shapes = {
        "model.embed_tokens.weight": [16, 8],
        "model.layers.0.self_attn.q_proj.weight": [8, 8],
        "model.layers.0.self_attn.k_proj.weight": [8, 8],
        "model.layers.0.self_attn.v_proj.weight": [8, 8],
        "model.layers.0.self_attn.o_proj.weight": [8, 8],
        "model.layers.0.mlp.gate_proj.weight": [16, 8],
        "model.layers.0.mlp.up_proj.weight": [16, 8],
        "model.layers.0.mlp.down_proj.weight": [8, 16],
        "model.layers.0.input_layernorm.weight": [8],
        "model.layers.0.post_attention_layernorm.weight": [8],
        "model.norm.weight": [8],
        "lm_head.weight": [16, 8],
    }
    tensors = {}
    for name, shape in shapes.items():
        count = shape[0] * (shape[1] if len(shape) > 1 else 1)
        tensors[name] = (
            "BF16",
            shape,
            bf16([common.gauss(0, 0.1) + (own.gauss(0, 0.02) if seed else 0.0) for _ in range(count)]),
        )
    write_safetensors(folder / "model.safetensors", tensors)
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 8, "num_hidden_layers": 1,
        "intermediate_size": 16, "vocab_size": 16, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 4,
        "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu",
        "tie_word_embeddings": False, "dtype": "bfloat16", "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def write_adapter(folder: Path, base: Path, rank: int = 2, seed: int = 1) -> Path:
    """A LoRA adapter on q_proj and down_proj of `write_model`'s model, float32."""
    folder.mkdir(parents=True)
    numbers = random.Random(seed)
    tensors = {}
    for module, (rows, columns) in {"self_attn.q_proj": (8, 8), "mlp.down_proj": (8, 16)}.items():
        stem = f"base_model.model.model.layers.0.{module}"
        for part, shape in (("A", [rank, columns]), ("B", [rows, rank])):
            raw = struct.pack(f"<{shape[0] * shape[1]}f", *(numbers.gauss(0, 0.1) for _ in range(shape[0] * shape[1])))
            tensors[f"{stem}.lora_{part}.weight"] = ("F32", shape, raw)
    write_safetensors(folder / "adapter_model.safetensors", tensors)
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": str(base), "r": rank, "lora_alpha": 2 * rank,
        "target_modules": ["q_proj", "down_proj"], "bias": "none", "fan_in_fan_out": False, "modules_to_save": None,
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


MERGE = {
    "merge_provenance.json": json.dumps(
        {
            "created": "2026-01-01", "job_id": "merge-20260101-000000-aaaa", "product": "model-merging", "engine": "stream",
            "engine_version": "1", "method": "linear", "recipe": "", "sources": [],
        }
    ),
    "config.json": "{}",
    "model.safetensors": "",
}  # fmt: skip
"""The files of an earlier merge of ours, which may be replaced."""


def linear_recipe(*models: Path | str, script: list[dict[str, Any]] | None = None) -> str:
    comment = f"# script: {json.dumps(script)}\n" if script else ""
    entries = "".join(f"  - model: {model}\n    parameters: {{weight: {1 / len(models)}}}\n" for model in models)
    return f"{comment}merge_method: linear\ndtype: bfloat16\nmodels:\n{entries}"


def write_tokenizer(folder: Path) -> Path:
    """A word-level tokenizer of 16 words beside a model."""
    words = {"<unk>": 0, "<s>": 1, "</s>": 2, **{chr(ord("a") + n): n + 3 for n in range(13)}}
    tokenizer = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
        "pre_tokenizer": {"type": "Whitespace"}, "post_processor": None, "decoder": None,
        "model": {"type": "WordLevel", "vocab": words, "unk_token": "<unk>"},
    }  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder
