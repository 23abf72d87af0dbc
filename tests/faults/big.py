"""Checkpoints of about 130 MB: large enough that a merge can be met in the middle."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np

HIDDEN, INTERMEDIATE, LAYERS, VOCABULARY = 1024, 2816, 4, 8192


def write_model(folder: Path, seed: int) -> Path:
    folder.mkdir(parents=True)
    numbers = np.random.default_rng(seed)
    shapes = {
        "model.embed_tokens.weight": [VOCABULARY, HIDDEN],
        "lm_head.weight": [VOCABULARY, HIDDEN],
        "model.norm.weight": [HIDDEN],
    }
    for layer in range(LAYERS):
        stem = f"model.layers.{layer}."
        shapes |= {f"{stem}self_attn.{name}_proj.weight": [HIDDEN, HIDDEN] for name in "qkvo"}
        shapes |= {f"{stem}mlp.{name}_proj.weight": [INTERMEDIATE, HIDDEN] for name in ("gate", "up")}
        shapes |= {f"{stem}mlp.down_proj.weight": [HIDDEN, INTERMEDIATE]}
        shapes |= {f"{stem}{name}_layernorm.weight": [HIDDEN] for name in ("input", "post_attention")}
    header, end = {}, 0
    for name, shape in sorted(shapes.items()):
        begin, end = end, end + 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        # Random bits of bf16 with the exponent kept below that of 2, so that every value is finite.
        file.write(np.frombuffer(numbers.bytes(end), np.uint16) & np.uint16(0xBFFF))
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN, "num_hidden_layers": LAYERS,
        "intermediate_size": INTERMEDIATE, "vocab_size": VOCABULARY, "num_attention_heads": 8, "num_key_value_heads": 8,
        "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu",
        "tie_word_embeddings": False, "dtype": "bfloat16",
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def ties_recipe(base: Path, *models: Path) -> str:
    entries = "".join(f"  - model: {model}\n    parameters: {{weight: 0.5, density: 0.5}}\n" for model in models)
    return f"merge_method: ties\nbase_model: {base}\ndtype: bfloat16\nmodels:\n{entries}"
