"""A GGUF file as the model that it was converted from: transformers' names, every weight by itself, in the config's dtype.

GGUF holds no config.json and no tokenizer files that transformers reads, so those of the original model must lie beside it; both
must say the same of layers, widths, heads and vocabulary. Only architectures whose conversion is known here are read: what
llama.cpp's converter renames, stacks, permutes or shifts is undone, what it makes itself (rotary factors) is left out.

Source: llama.cpp, conversion/*.py, and the tensor name maps of its package gguf, which a test holds these tables against.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from mcp_server.errors import Incompatible, Malformed, NotAModel, Unsupported
from mcp_server.formats.dtypes import compute_dtype
from mcp_server.formats.folder import GGUF_ORIGINAL
from mcp_server.formats.gguf import Gguf, read_gguf
from mcp_server.formats.identity import config_field
from mcp_server.formats.quantised.ggml import Ggml
from mcp_server.formats.quantised.part import Part
from mcp_server.formats.safetensors import Header

_COMMON: Final = {
    "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip
_OUTSIDE: Final = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_MADE: Final = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
"""What a converter makes from the config."""
_GEMMA: Final = {
    "ffn_norm": "pre_feedforward_layernorm", "post_attention_norm": "post_attention_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}  # fmt: skip
_EXPERTS: Final = {
    "ffn_gate_inp": "mlp.gate", "ffn_gate_exps": "mlp.experts.{x}.gate_proj", "ffn_up_exps": "mlp.experts.{x}.up_proj",
    "ffn_down_exps": "mlp.experts.{x}.down_proj", "ffn_gate_inp_shexp": "mlp.shared_expert_gate",
    "ffn_gate_shexp": "mlp.shared_expert.gate_proj", "ffn_up_shexp": "mlp.shared_expert.up_proj",
    "ffn_down_shexp": "mlp.shared_expert.down_proj",
}  # fmt: skip
_MIXTRAL: Final = {
    "ffn_gate_inp": "block_sparse_moe.gate", "ffn_gate_exps": "block_sparse_moe.experts.{x}.w1",
    "ffn_up_exps": "block_sparse_moe.experts.{x}.w3", "ffn_down_exps": "block_sparse_moe.experts.{x}.w2",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Architecture:
    """How one of GGUF's architectures was converted. `models` are transformers' model types of it."""

    models: tuple[str, ...]
    names: dict[str, str] = field(default_factory=dict)
    permutes: bool = False
    shifts: bool = False


ARCHITECTURES: Final = {
    "llama": Architecture(("llama", "mistral", "mixtral"), _MIXTRAL, permutes=True),
    "smollm3": Architecture(("smollm3",), permutes=True),
    "granite": Architecture(("granite",), permutes=True),
    "qwen2": Architecture(("qwen2",)),
    "qwen3": Architecture(("qwen3",)),
    "qwen2moe": Architecture(("qwen2_moe",), _EXPERTS),
    "qwen3moe": Architecture(("qwen3_moe",), _EXPERTS),
    "gemma": Architecture(("gemma",), shifts=True),
    "gemma2": Architecture(("gemma2",), _GEMMA, shifts=True),
    "gemma3": Architecture(("gemma3_text",), _GEMMA, shifts=True),
    "phi3": Architecture(("phi3",), {"attn_qkv": "self_attn.qkv_proj", "ffn_up": "mlp.gate_up_proj"}),
    "olmo2": Architecture(("olmo2", "olmo3"), {key: _GEMMA[key] for key in ("post_attention_norm", "post_ffw_norm")}),
    "starcoder2": Architecture(("starcoder2",), {"ffn_up": "mlp.c_fc", "ffn_down": "mlp.c_proj"}),
    "cohere2": Architecture(("cohere2",)),
    "seed_oss": Architecture(("seed_oss",), {"post_attention_norm": "post_attention_layernorm"}),
}
"""GGUF's name (`general.architecture`) → how to read it."""
_LAYER: Final = re.compile(r"blk\.(?P<layer>\d+)\.(?P<part>[a-z_0-9]+)\.(?P<kind>weight|bias)$")
SAME: Final = (
    ("block_count", "layers"), ("embedding_length", "hidden"), ("feed_forward_length", "intermediate"),
    ("attention.head_count", "heads"), ("attention.head_count_kv", "kv_heads"),
)  # fmt: skip
"""GGUF's key behind the architecture's name → ours."""

_ALWAYS: Final = ("embedding_length", "attention.head_count")


def read_model(files: list[Path], config: dict[str, Any]) -> tuple[dict[Path, Header], dict[str, Ggml]]:
    """Headers by file, and every weight by transformers' name. Raises one of our errors, by name, for what is not read."""
    parts = [read_gguf(file) for file in files]
    known = _architecture(parts[0], config)
    weights: dict[str, Ggml] = {}
    for part in parts:
        for name, packing in _weights(part, known, config):
            if name in weights:
                raise Malformed(f"{part.file}: {packing.codes.name} is stored twice", "download the files again")
            weights[name] = packing
    _check(parts, config, weights)
    return {part.file: part.header for part in parts}, weights


def require_config(folder: Path, file: Path) -> None:
    """Raise `NotAModel` when no config.json lies beside a GGUF."""
    if not (folder / "config.json").is_file():
        raise NotAModel(f"{file} is GGUF, which holds no config.json, and none lies beside it", GGUF_ORIGINAL)


def require_made_of(files: list[Path], config: dict[str, Any], where: str) -> None:
    """Raise `Incompatible` where a GGUF cannot be an export of the model that `config`, called `where`, describes.

    Of architectures that are not read here only width and heads are compared: converters count layers and heads for keys in
    ways of their own. Raises `NotAModel` for a GGUF that is an adapter or a projector.
    """
    parts = [read_gguf(file) for file in files]
    metadata, file, mine = parts[0].metadata, parts[0].file, str(config.get("model_type"))
    if metadata.get("general.type", "model") != "model":
        raise NotAModel(f"{file} holds no model but {metadata['general.type']!r}", "name the GGUF of the model")
    name = str(metadata.get("general.architecture"))
    known = ARCHITECTURES.get(name)
    read_here = {model for one in ARCHITECTURES.values() for model in one.models}
    again = "export the merge that is measured (model-merging export), or name its own GGUF"
    if known is not None and mine in read_here and mine not in known.models:
        raise Incompatible(f"{file} holds a model of the architecture {name!r}, {where} describes {mine!r}", again)
    sure = known is not None and mine in known.models
    for key, field_ in SAME:
        theirs, ours = metadata.get(f"{name}.{key}"), config_field(config, field_)
        if (sure or key in _ALWAYS) and theirs is not None and ours is not None and theirs != ours:
            raise Incompatible(f"{file} says {name}.{key} {theirs}, {where} says {ours}", again)
    rows = next((part.shapes["token_embd.weight"][0] for part in parts if "token_embd.weight" in part.shapes), None)
    vocabulary = config_field(config, "vocabulary")
    if sure and rows is not None and vocabulary is not None and rows != vocabulary:
        raise Incompatible(f"{file} has rows for {rows} tokens, {where} says vocab_size {vocabulary}", again)


def _architecture(part: Gguf, config: dict[str, Any]) -> Architecture:
    name, mine = part.metadata.get("general.architecture"), str(config.get("model_type"))
    known = ARCHITECTURES.get(str(name))
    if known is None:
        raise Unsupported(
            f"{part.file} is GGUF of the architecture {name!r}, whose conversion is not undone here; read are "
            f"{', '.join(ARCHITECTURES)}",
            "merge the model that it was converted from",
        )
    if mine not in known.models:
        raise Incompatible(
            f"{part.file} holds a model of the architecture {name!r}, the config.json beside it describes {mine!r}",
            "put the config.json of the model that it was converted from beside it",
        )
    if part.metadata.get("general.type", "model") != "model":
        raise NotAModel(f"{part.file} holds no model but {part.metadata['general.type']!r}", "name the GGUF of the model")
    return known


def _weights(part: Gguf, known: Architecture, config: dict[str, Any]) -> Iterator[tuple[str, Ggml]]:
    dtype = compute_dtype(config)
    names = _COMMON | known.names
    for stored, info in part.header.tensors.items():
        if stored in _MADE:
            continue
        shape, kind = part.shapes[stored], part.types[stored]
        codes = Part(stored, part.file, part.header.data_start + info.begin, "U8", info.shape, info.nbytes)
        outside, _, suffix = stored.rpartition(".")
        if outside in _OUTSIDE:
            target, piece = _OUTSIDE[outside], outside
        elif (match := _LAYER.match(stored)) and match["part"] in names:
            piece, suffix = match["part"], match["kind"]
            target = f"model.layers.{match['layer']}.{names[piece]}"
        else:
            raise Unsupported(
                f"{part.file}: what {stored!r} is in {part.metadata['general.architecture']} is not known here",
                "merge the model that it was converted from",
            )
        added = 1.0 if known.shifts and piece.endswith("norm") and suffix == "weight" else 0.0
        if "{x}" not in target:
            shape = (1, *shape) if piece == "ffn_gate_inp_shexp" and len(shape) == 1 else shape
            heads = _heads(part.file, stored, piece, shape, config) if known.permutes else 0
            yield f"{target}.{suffix}", Ggml(shape, dtype, kind, codes, heads, added)
            continue
        if len(shape) != 3:
            raise Malformed(f"{part.file}: {stored!r} has the shape {list(shape)}, not one matrix an expert", "download it again")
        size = codes.nbytes // shape[0]
        for expert in range(shape[0]):
            own = Part(stored, part.file, codes.offset + expert * size, "U8", (size,), size)
            yield f"{target.format(x=expert)}.{suffix}", Ggml(shape[1:], dtype, kind, own)


def _heads(file: Path, stored: str, piece: str, shape: tuple[int, ...], config: dict[str, Any]) -> int:
    """How many heads the rows of a query or key projection belong to; 0 for everything else."""
    if piece not in ("attn_q", "attn_k"):
        return 0
    heads = config_field(config, "heads")
    count = heads if piece == "attn_q" else config_field(config, "kv_heads") or heads
    if not count or shape[0] % (2 * count):
        raise Malformed(f"{file}: {stored!r} has {shape[0]} rows, which are no {count} heads of an even size", GGUF_ORIGINAL)
    return count


def _check(parts: list[Gguf], config: dict[str, Any], weights: dict[str, Ggml]) -> None:
    """Raise `Incompatible` where the file and the config beside it describe different models, `Malformed` for missing tensors."""
    metadata, file = parts[0].metadata, parts[0].file
    name = metadata["general.architecture"]
    for key, field_ in SAME:
        theirs, mine = metadata.get(f"{name}.{key}"), config_field(config, field_)
        if theirs is not None and mine is not None and theirs != mine:
            raise Incompatible(f"{file} says {name}.{key} {theirs}, the config.json beside it {mine}", GGUF_ORIGINAL)
    embedding, vocabulary = weights.get("model.embed_tokens.weight"), config_field(config, "vocabulary")
    if embedding is None:
        raise Malformed(f"{file} holds no token_embd.weight", "name all files of the model")
    if vocabulary is not None and embedding.shape[0] != vocabulary:
        raise Incompatible(
            f"{file} has rows for {embedding.shape[0]} tokens, the config.json beside it says vocab_size {vocabulary}",
            "the converter cut or padded the embedding: merge the model that it was converted from",
        )
    expected = metadata.get("split.tensors.count")
    held = sum(len(part.header.tensors) for part in parts)
    if type(expected) is int and expected != held:
        raise Malformed(f"{file} and its parts hold {held} tensors of {expected}", "download the parts again")
    inside: dict[int, set[str]] = {number: set() for number in range(config_field(config, "layers") or 0)}
    for part in parts:
        for match in filter(None, map(_LAYER.match, part.header.tensors)):
            inside.setdefault(int(match["layer"]), set()).add(f"{match['part']}.{match['kind']}")
    every = set() if any(name.startswith("ffn_gate_exps") for name in inside.get(0, ())) else set().union(*inside.values())
    for layer, held_here in inside.items():
        if lacking := sorted(every - held_here) or ([] if held_here else ["tensors"]):
            raise Malformed(f"{file} holds no {lacking[0]} of layer {layer}, which other layers have", "download it again")
