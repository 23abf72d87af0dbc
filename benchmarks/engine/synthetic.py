"""A base, fine-tunes of it and LoRA adapters, in the shapes of real Llamas, with random weights.

Speed, memory and arithmetic can be judged on them, never quality. Every tensor's generator is seeded by its name, so a checkpoint
comes out the same on every machine. A fine-tune adds a task vector a tenth of the base's size.
"""

from __future__ import annotations

import json
import math
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

CHUNK = 1 << 22
SHARD_BYTES = 5_000_000_000
LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Shape:
    hidden: int
    layers: int
    intermediate: int
    vocabulary: int
    heads: int
    kv_heads: int

    def tensors(self) -> dict[str, tuple[int, ...]]:
        h, kv, i = self.hidden, self.kv_heads * self.hidden // self.heads, self.intermediate
        table: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (self.vocabulary, h)}
        for n in range(self.layers):
            rows = {"q_proj": (h, h), "k_proj": (kv, h), "v_proj": (kv, h), "o_proj": (h, h)}
            table |= {f"model.layers.{n}.self_attn.{name}.weight": shape for name, shape in rows.items()}
            rows = {"gate_proj": (i, h), "up_proj": (i, h), "down_proj": (h, i)}
            table |= {f"model.layers.{n}.mlp.{name}.weight": shape for name, shape in rows.items()}
            table[f"model.layers.{n}.input_layernorm.weight"] = (h,)
            table[f"model.layers.{n}.post_attention_layernorm.weight"] = (h,)
        return table | {"model.norm.weight": (h,), "lm_head.weight": (self.vocabulary, h)}

    @property
    def parameters(self) -> int:
        return sum(math.prod(shape) for shape in self.tensors().values())

    def config(self) -> dict[str, object]:
        return {
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": self.hidden,
            "vocab_size": self.vocabulary, "num_hidden_layers": self.layers, "intermediate_size": self.intermediate,
            "num_attention_heads": self.heads, "num_key_value_heads": self.kv_heads, "head_dim": self.hidden // self.heads,
            "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "hidden_act": "silu", "tie_word_embeddings": False,
            "torch_dtype": "bfloat16",
        }  # fmt: skip


SHAPES = {
    "0.1b": Shape(768, 8, 2048, 32000, 12, 4),
    "0.85b": Shape(2048, 16, 5632, 32000, 16, 4),
    "llama3-8b": Shape(4096, 32, 14336, 128256, 32, 8),
}


def write_model(out: Path, shape: Shape, finetune: int = 0) -> Path:
    """bf16; finetune 0 is the base. A folder that is complete is left as it is."""
    if (out / "config.json").is_file():
        return out
    out.mkdir(parents=True, exist_ok=True)
    groups: list[dict[str, tuple[int, ...]]] = [{}]
    for name, dims in shape.tensors().items():
        if sum(2 * math.prod(d) for d in groups[-1].values()) + 2 * math.prod(dims) > SHARD_BYTES and groups[-1]:
            groups.append({})
        groups[-1][name] = dims
    table = {}
    for number, group in enumerate(groups, 1):
        file = f"model-{number:05d}-of-{len(groups):05d}.safetensors"
        _write_shard(out / file, group, finetune)
        table |= dict.fromkeys(group, file)
    index = {"metadata": {"total_size": 2 * shape.parameters}, "weight_map": table}
    (out / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    (out / "config.json").write_text(json.dumps(shape.config()), encoding="utf-8")
    return out


def write_lora(out: Path, base: Path, shape: Shape, rank: int, seed: int = 0) -> Path:
    """A PEFT adapter on all linear projections, alpha = 2·rank, float32; two of one rank need two seeds."""
    if (out / "adapter_config.json").is_file():
        return out
    out.mkdir(parents=True, exist_ok=True)
    entries, parts, position = {"__metadata__": {"format": "pt"}}, [], 0
    for name, dims in shape.tensors().items():
        if name.split(".")[-2] not in LINEAR:
            continue
        stem = "base_model.model." + name.removesuffix(".weight")
        for part, factor in (("A", (rank, dims[1])), ("B", (dims[0], rank))):
            values = _generator(f"{stem}.{part}", rank + 1000 * seed).standard_normal(factor, np.float32) * np.float32(0.01)
            entries[f"{stem}.lora_{part}.weight"] = {
                "dtype": "F32", "shape": list(factor), "data_offsets": [position, position + values.nbytes],
            }  # fmt: skip
            position += values.nbytes
            parts.append(values)
    with (out / "adapter_model.safetensors").open("wb") as file:
        file.write(_header(entries))
        file.writelines(values.tobytes() for values in parts)
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": str(base), "r": rank, "lora_alpha": 2 * rank,
        "lora_dropout": 0.0, "bias": "none", "target_modules": list(LINEAR), "inference_mode": True,
    }  # fmt: skip
    (out / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    return out


def _write_shard(path: Path, tensors: dict[str, tuple[int, ...]], finetune: int) -> None:
    entries, position = {"__metadata__": {"format": "pt"}}, 0
    for name, dims in tensors.items():
        end = position + 2 * math.prod(dims)
        entries[name] = {"dtype": "BF16", "shape": list(dims), "data_offsets": [position, end]}
        position = end
    with path.open("wb") as file:
        file.write(_header(entries))
        for name, dims in tensors.items():
            base, delta = _generator(name, 1), _generator(name, 1000 + finetune)
            for begin in range(0, math.prod(dims), CHUNK):
                count = min(CHUNK, math.prod(dims) - begin)
                values = base.standard_normal(count, np.float32) * np.float32(0.02)
                if finetune:
                    values = _to_bf16(values).astype(np.uint32) << 16
                    values = values.view(np.float32) + delta.standard_normal(count, np.float32) * np.float32(0.002)
                file.write(_to_bf16(values).tobytes())


def _generator(name: str, seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.SFC64([seed, zlib.crc32(name.encode())]))


def _to_bf16(values: np.ndarray) -> np.ndarray:
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def _header(entries: dict[str, object]) -> bytes:
    text = json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text
