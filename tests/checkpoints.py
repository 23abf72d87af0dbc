"""Checkpoints of any shape for tests that only look at headers: zeros, real names, a few kilobytes."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from tests.tiny import write_safetensors

WIDTH = {"BF16": 2, "F16": 2, "F32": 4, "I8": 1, "U8": 1}
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def shapes(
    layers: int, hidden: int, intermediate: int, vocabulary: int, heads: int, kv_heads: int, tied: bool
) -> dict[str, list[int]]:
    kv = hidden * kv_heads // heads
    found = {"model.embed_tokens.weight": [vocabulary, hidden]}
    for n in range(layers):
        for part, dims in {
            "self_attn.q_proj": [hidden, hidden], "self_attn.k_proj": [kv, hidden], "self_attn.v_proj": [kv, hidden],
            "self_attn.o_proj": [hidden, hidden], "mlp.gate_proj": [intermediate, hidden], "mlp.up_proj": [intermediate, hidden],
            "mlp.down_proj": [hidden, intermediate], "input_layernorm": [hidden], "post_attention_layernorm": [hidden],
        }.items():  # fmt: skip
            found[f"model.layers.{n}.{part}.weight"] = dims
    found["model.norm.weight"] = [hidden]
    return found if tied else found | {"lm_head.weight": [vocabulary, hidden]}


def write_model(
    folder: Path,
    *,
    layers: int = 2,
    hidden: int = 8,
    intermediate: int = 16,
    vocabulary: int = 16,
    heads: int = 2,
    kv_heads: int = 2,
    tied: bool = False,
    dtype: str = "BF16",
    tokens: list[str] | None = None,
    drop: tuple[str, ...] = (),
    add: dict[str, list[int]] | None = None,
    shards: int = 1,
    card: str | None = None,
    architecture: str = "LlamaForCausalLM",
    **config: Any,
) -> Path:
    """A full model of zeros. `tokens` writes a tokenizer.json; `drop` and `add` make it differ from its siblings."""
    folder.mkdir(parents=True, exist_ok=True)
    wanted = shapes(layers, hidden, intermediate, vocabulary, heads, kv_heads, tied) | (add or {})
    tensors = {name: (dtype, dims, bytes(math.prod(dims) * WIDTH[dtype])) for name, dims in wanted.items() if name not in drop}
    if shards == 1:
        write_safetensors(folder / "model.safetensors", tensors)
    else:
        weight_map = {}
        for n in range(shards):
            file = f"model-{n + 1:05d}-of-{shards:05d}.safetensors"
            part = dict(list(tensors.items())[n::shards])
            write_safetensors(folder / file, part)
            weight_map |= dict.fromkeys(part, file)
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}), encoding="utf-8")
    settings = {
        "architectures": [architecture], "model_type": architecture.partition("For")[0].lower(),
        "hidden_size": hidden, "num_hidden_layers": layers,
        "intermediate_size": intermediate, "vocab_size": vocabulary, "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "tie_word_embeddings": tied, "rope_theta": 10000.0, "hidden_act": "silu",
    } | config  # fmt: skip
    (folder / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    if tokens is not None:
        write_tokenizer(folder, tokens)
    if card is not None:
        (folder / "README.md").write_text(card, encoding="utf-8")
    return folder


def write_tokenizer(folder: Path, tokens: list[str], **extra: Any) -> None:
    data = {"model": {"type": "BPE", "vocab": {token: n for n, token in enumerate(tokens)}}, "added_tokens": []} | extra
    (folder / "tokenizer.json").write_text(json.dumps(data), encoding="utf-8")


def write_lora(
    folder: Path,
    base: str,
    *,
    layers: int = 2,
    hidden: int = 8,
    intermediate: int = 16,
    rank: int = 2,
    targets: tuple[str, ...] = ("self_attn.q_proj", "mlp.down_proj"),
    alpha: int = 4,
    prefix: str = "model.",
    **config: Any,
) -> Path:
    """A LoRA adapter of zeros on the given modules of every layer."""
    folder.mkdir(parents=True, exist_ok=True)
    dims = shapes(layers, hidden, intermediate, 1, 2, 2, True)
    tensors = {}
    for n in range(layers):
        for target in targets:
            rows, columns = dims[f"model.layers.{n}.{target}.weight"]
            stem = f"base_model.model.{prefix}layers.{n}.{target}"
            tensors[f"{stem}.lora_A.weight"] = ("F32", [rank, columns], bytes(4 * rank * columns))
            tensors[f"{stem}.lora_B.weight"] = ("F32", [rows, rank], bytes(4 * rank * rows))
    write_safetensors(folder / "adapter_model.safetensors", tensors)
    settings = {
        "peft_type": "LORA", "base_model_name_or_path": base, "r": rank, "lora_alpha": alpha, "bias": "none",
        "target_modules": [target.split(".")[-1] for target in targets],
    } | config  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder


def cache_model(cache: Path, hub_id: str, **shape: Any) -> Path:
    """A model in a Hugging Face cache folder, as `hf download` leaves it."""
    folder = cache / f"models--{hub_id.replace('/', '--')}"
    snapshot = write_model(folder / "snapshots" / "0123abcd", **shape)
    (folder / "refs").mkdir(exist_ok=True)
    (folder / "refs" / "main").write_text("0123abcd", encoding="utf-8")
    return snapshot
