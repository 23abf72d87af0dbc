"""Tiny Llama-shaped checkpoints and adapters, written with numpy alone."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from mcp_server.engine.merge import merge
from mcp_server.engine.request import Request
from mcp_server.formats.safetensors import read_header

Tensors = dict[str, np.ndarray]
LETTERS = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}
HIDDEN, VOCABULARY, INTERMEDIATE = 12, 20, 16


def shapes(layers: int = 3, *, head: bool = True) -> dict[str, tuple[int, ...]]:
    table: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCABULARY, HIDDEN)}
    for i in range(layers):
        stem = f"model.layers.{i}."
        table[stem + "self_attn.q_proj.weight"] = (HIDDEN, HIDDEN)
        table[stem + "self_attn.q_proj.bias"] = (HIDDEN,)
        table[stem + "mlp.up_proj.weight"] = (INTERMEDIATE, HIDDEN)
        table[stem + "mlp.down_proj.weight"] = (HIDDEN, INTERMEDIATE)
        table[stem + "input_layernorm.weight"] = (HIDDEN,)
    table["model.norm.weight"] = (HIDDEN,)
    if head:
        table["lm_head.weight"] = (VOCABULARY, HIDDEN)
    return table


def to_bits(values: np.ndarray, dtype: str) -> bytes:
    values = np.ascontiguousarray(values, np.float32)
    if dtype == "float32":
        return values.tobytes()
    if dtype == "float16":
        return values.astype(np.float16).tobytes()
    bits = values.view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16).tobytes()


def from_bits(raw: bytes, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    """float64 values of stored bytes."""
    if dtype == "BF16":
        flat = (np.frombuffer(raw, np.uint16).astype(np.uint32) << 16).view(np.float32)
    else:
        flat = np.frombuffer(raw, {"F16": np.float16, "F32": np.float32}[dtype])
    return flat.astype(np.float64).reshape(shape)


def save(path: Path, tensors: Tensors, dtype: str) -> None:
    """One safetensors file; `dtype` rounds every tensor."""
    entries, body = {}, b""
    for name, values in tensors.items():
        raw = to_bits(values, dtype)
        entries[name] = {"dtype": LETTERS[dtype], "shape": list(values.shape), "data_offsets": [len(body), len(body) + len(raw)]}
        body += raw
    header = json.dumps(entries).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + body)


def load(folder: Path) -> Tensors:
    """Every tensor of a model or adapter folder as float64."""
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        header, data = read_header(file), file.read_bytes()
        for name, info in header.tensors.items():
            start = header.data_start + info.begin
            found[name] = from_bits(data[start : start + info.nbytes], info.dtype, info.shape)
    return found


def random_tensors(seed: int, layers: int = 3, *, head: bool = True, around: Tensors | None = None, size: float = 0.1) -> Tensors:
    generator = np.random.default_rng(seed)
    table = {name: generator.standard_normal(shape) for name, shape in shapes(layers, head=head).items()}
    return {name: around[name] + size * values for name, values in table.items()} if around else table


def write_model(
    folder: Path, tensors: Tensors, dtype: str = "bfloat16", *, shards: int = 1, config: dict[str, Any] | None = None
) -> Path:
    folder.mkdir(parents=True)
    numbers = [int(name.split(".")[2]) for name in tensors if name.startswith("model.layers.")]
    settings = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN, "vocab_size": VOCABULARY,
        "intermediate_size": INTERMEDIATE, "num_hidden_layers": max(numbers) + 1, "torch_dtype": dtype, "num_attention_heads": 2,
        "tie_word_embeddings": "lm_head.weight" not in tensors,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(settings | (config or {})), encoding="utf-8")
    names = list(tensors)
    if shards == 1:
        save(folder / "model.safetensors", tensors, dtype)
        return folder
    size, table = math.ceil(len(names) / shards), {}
    for n in range(shards):
        file = f"model-{n + 1:05d}-of-{shards:05d}.safetensors"
        part = names[n * size : (n + 1) * size]
        save(folder / file, {name: tensors[name] for name in part}, dtype)
        table |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": table}), encoding="utf-8")
    return folder


def write_adapter(folder: Path, factors: Tensors, dtype: str = "float32", **config: Any) -> Path:
    """`factors` maps PEFT keys (without the base_model.model. prefix) to arrays."""
    folder.mkdir(parents=True)
    save(folder / "adapter_model.safetensors", {f"base_model.model.{key}": value for key, value in factors.items()}, dtype)
    settings = {
        "peft_type": "LORA",
        "r": 2,
        "lora_alpha": 4,
        "target_modules": ["q_proj"],
        "bias": "none",
        "task_type": "CAUSAL_LM",
    }
    (folder / "adapter_config.json").write_text(json.dumps(settings | config), encoding="utf-8")
    return folder


def low_rank(seed: int, modules: dict[str, tuple[int, int]], rank: int) -> Tensors:
    """A and B for modules of shape (out, in)."""
    generator = np.random.default_rng(seed)
    factors = {}
    for module, (rows, columns) in modules.items():
        factors[f"{module}.lora_A.weight"] = generator.standard_normal((rank, columns))
        factors[f"{module}.lora_B.weight"] = generator.standard_normal((rows, rank))
    return factors


def run(recipe: str, out: Path, **settings: Any) -> dict[str, Any]:
    """Merge into `out`; the journal lies beside it."""
    out.parent.mkdir(parents=True, exist_ok=True)
    return merge(Request(recipe, out, out.with_suffix(".journal"), **settings), lambda *_: None)


def write_two_adapters(folder: Path, up: str, q: str) -> None:
    """A base and two adapters of it in `folder`: both change the matrix `up`, the first also `q`."""
    known = {name.removesuffix(".weight"): shape for name, shape in shapes().items()}
    write_model(folder / "base", random_tensors(0), "float32")
    write_adapter(folder / "a", low_rank(1, {up: known[up], q: known[q]}, 2), r=2)
    write_adapter(folder / "b", low_rank(2, {up: known[up]}, 3), r=3, lora_alpha=5)


def write_two_sources(folder: Path, method: str) -> str:
    """A base, a fine-tune in two shards and an adapter of the base in `folder`; returns a recipe that merges them."""
    base = random_tensors(0)
    write_model(folder / "base", base)
    write_model(folder / "one", random_tensors(1, around=base), shards=2)
    write_adapter(folder / "lora", low_rank(2, {"model.layers.1.mlp.up_proj": (16, 12)}, 2))
    models = [
        {"model": str(folder / "one"), "parameters": {"weight": 0.6, "density": 0.5}},
        {"model": f"{folder}/base+{folder}/lora", "parameters": {"weight": 0.5, "density": 0.4}},
    ]
    return json.dumps({"merge_method": method, "base_model": str(folder / "base"), "models": models, "dtype": "bfloat16"})
