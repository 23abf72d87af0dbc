"""Synthetic checkpoints for measuring: real names and shapes, random weights, written without torch.

Memory and time of a merge depend on shapes, dtypes and settings, not on what the weights mean. Random values keep the ranking
inside TIES and its like honest (no ties), which constants would not.
"""

from __future__ import annotations

import json
import math
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

WIDTH = {"BF16": 2, "F16": 2, "F32": 4}
CHUNK = 1 << 22


@dataclass(frozen=True)
class Shape:
    """A Llama-like model."""

    hidden: int
    layers: int
    intermediate: int
    vocabulary: int
    heads: int = 8
    kv_heads: int = 4
    tied: bool = False
    dtype: str = "BF16"

    def tensors(self) -> dict[str, tuple[int, ...]]:
        kv = self.kv_heads * self.hidden // self.heads
        found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (self.vocabulary, self.hidden)}
        for n in range(self.layers):
            layer = f"model.layers.{n}."
            for part, dims in (("q", (self.hidden, self.hidden)), ("k", (kv, self.hidden)), ("v", (kv, self.hidden))):
                found[f"{layer}self_attn.{part}_proj.weight"] = dims
            found[f"{layer}self_attn.o_proj.weight"] = (self.hidden, self.hidden)
            found[f"{layer}mlp.gate_proj.weight"] = (self.intermediate, self.hidden)
            found[f"{layer}mlp.up_proj.weight"] = (self.intermediate, self.hidden)
            found[f"{layer}mlp.down_proj.weight"] = (self.hidden, self.intermediate)
            found[f"{layer}input_layernorm.weight"] = (self.hidden,)
            found[f"{layer}post_attention_layernorm.weight"] = (self.hidden,)
        found["model.norm.weight"] = (self.hidden,)
        if not self.tied:
            found["lm_head.weight"] = (self.vocabulary, self.hidden)
        return found

    def config(self) -> dict[str, object]:
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": self.hidden,
            "num_hidden_layers": self.layers,
            "intermediate_size": self.intermediate,
            "vocab_size": self.vocabulary,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.hidden // self.heads,
            "max_position_embeddings": 2048,
            "rms_norm_eps": 1e-5,
            "hidden_act": "silu",
            "tie_word_embeddings": self.tied,
            "torch_dtype": {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}[self.dtype],
        }


def write_model(out: Path, shape: Shape, seed: int) -> Path:
    """One checkpoint in one file; nothing is done when it is there already."""
    if (out / "config.json").is_file():
        return out
    out.mkdir(parents=True, exist_ok=True)
    tensors = {name: (shape.dtype, dims) for name, dims in shape.tensors().items()}
    _write(out / "model.safetensors", tensors, seed, 0.02)
    (out / "config.json").write_text(json.dumps(shape.config(), indent=1), encoding="utf-8")
    return out


def write_lora(out: Path, base: Path, shape: Shape, rank: int, seed: int) -> Path:
    """A PEFT LoRA adapter on all linear projections, float32."""
    if (out / "adapter_config.json").is_file():
        return out
    out.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, tuple[str, tuple[int, ...]]] = {}
    for name, dims in shape.tensors().items():
        if "_proj" in name:
            stem = "base_model.model." + name.removesuffix(".weight")
            tensors[f"{stem}.lora_A.weight"] = ("F32", (rank, dims[1]))
            tensors[f"{stem}.lora_B.weight"] = ("F32", (dims[0], rank))
    _write(out / "adapter_model.safetensors", tensors, seed, 0.01)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(base.resolve()),
        "r": rank,
        "lora_alpha": 2 * rank,
        "bias": "none",
        "target_modules": [f"{p}_proj" for p in ("q", "k", "v", "o", "gate", "up", "down")],
        "inference_mode": True,
    }
    (out / "adapter_config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
    return out


def _write(path: Path, tensors: dict[str, tuple[str, tuple[int, ...]]], seed: int, scale: float) -> None:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, (dtype, dims) in tensors.items():
        size = math.prod(dims) * WIDTH[dtype]
        header[name] = {"dtype": dtype, "shape": list(dims), "data_offsets": [offset, offset + size]}
        offset += size
    raw = json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8)
    with path.open("wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        for name, (dtype, dims) in tensors.items():
            generator = np.random.default_rng([seed, zlib.crc32(name.encode())])
            left = math.prod(dims)
            while left:
                count = min(left, CHUNK)
                values = generator.standard_normal(count, dtype=np.float32) * np.float32(scale)
                file.write(_as(dtype, values))
                left -= count


def _as(dtype: str, values: np.ndarray) -> bytes:
    if dtype == "F32":
        return values.tobytes()
    if dtype == "F16":
        return values.astype(np.float16).tobytes()
    return (values.view(np.uint32) >> 16).astype(np.uint16).tobytes()
