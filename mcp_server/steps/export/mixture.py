"""Which ggml type each tensor of a quantised GGUF gets: llama.cpp's own mixtures.

A mixture such as Q4_K_M stores most matrices in its main type and those that hurt most when they are rounded (the output head,
values of attention and down-projections in the outer layers and every third one between) with more bits. Matrices whose rows are
not a multiple of 256 fall back to types of 32.

Source: llama.cpp, src/llama-quant.cpp (llama_tensor_get_type, tensor_allows_quantization, tensor_type_fallback).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from mcp_server.formats.quantised.ggml import SIZES

MAIN: Final = {
    "Q8_0": "Q8_0", "Q6_K": "Q6_K", "Q5_K_M": "Q5_K", "Q5_K_S": "Q5_K", "Q4_K_M": "Q4_K", "Q4_K_S": "Q4_K", "Q3_K_M": "Q3_K",
}  # fmt: skip
FILE_TYPES: Final = {
    "F16": 1, "Q8_0": 7, "Q3_K_M": 12, "Q4_K_S": 14, "Q4_K_M": 15, "Q5_K_S": 16, "Q5_K_M": 17, "Q6_K": 18, "BF16": 32,
}  # fmt: skip
"""GGUF's `general.file_type`."""
_FALLBACK: Final = {"Q3_K": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
_KEPT: Final = (
    "_norm.weight", "ffn_gate_inp.weight", "ffn_gate_tid2eid.weight", "altup", "laurel", "per_layer_model_proj", "ssm_conv1d",
    "shortconv.conv.weight", "indexer.k_proj.weight", "indexer.q_proj.weight", "time_mix_first.weight", "time_mix_w0.weight",
    "time_mix_w1.weight", "time_mix_w2.weight", "time_mix_v0.weight", "time_mix_v1.weight", "time_mix_v2.weight",
    "time_mix_a0.weight", "time_mix_a1.weight", "time_mix_a2.weight", "time_mix_g1.weight", "time_mix_g2.weight",
    "time_mix_decay_w1.weight", "time_mix_decay_w2.weight", "time_mix_lerp_fused.weight", "attn_rel_b.weight", "position_embd",
    "token_types", "rel_pos", "patch_embd",
)  # fmt: skip
_EMBEDDINGS: Final = ("token_embd.weight", "per_layer_token_embd.weight")
_LAYER: Final = re.compile(r"blk\.(\d+)\.")
_LAYERS_OF_70B: Final = 80


def mixture(quant: str, shapes: Mapping[str, tuple[int, ...]], metadata: Mapping[str, Any]) -> dict[str, str]:
    """Tensor → ggml type, for the tensors that are quantised; the others keep what they are stored in.

    `shapes` are rows first, `metadata` the file's own (`general.architecture`, layers, experts).
    """
    architecture = str(metadata.get("general.architecture", ""))
    layers = int(metadata.get(f"{architecture}.block_count") or 0)
    experts = int(metadata.get(f"{architecture}.expert_count") or 0)
    tied = "output.weight" not in shapes
    values = sorted((n for n in shapes if _is_value(n) and _may(n, shapes[n])), key=_layer)
    found = {}
    for name, shape in shapes.items():
        if not _may(name, shape):
            continue
        kind = MAIN[quant]
        if quant != "Q8_0":
            kind = _mixed(quant, kind, name, shape, architecture, layers, experts, tied, values)
        found[name] = _fitting(kind, shape[-1])
    return found


def _mixed(
    quant: str,
    main: str,
    name: str,
    shape: tuple[int, ...],
    architecture: str,
    layers: int,
    experts: int,
    tied: bool,
    values: list[str],
) -> str:
    if name == "output.weight" or (tied and name in _EMBEDDINGS):
        return "Q8_0" if architecture == "falcon" or shape[-1] % SIZES[main][0] else "Q6_K"
    if _is_value(name):
        return _value(quant, main, values.index(name), len(values), experts, layers, architecture)
    if experts == 8 and "attn_k.weight" in name:
        return "Q8_0"
    if "ffn_down" in name:
        return _down(quant, main, _layer(name), layers, architecture)
    if "attn_output.weight" in name and architecture != "falcon":
        if experts == 8:
            return "Q5_K" if main in ("Q3_K", "Q4_K") else main
        return "Q4_K" if quant == "Q3_K_M" else main
    return main


def _value(quant: str, main: str, number: int, count: int, experts: int, layers: int, architecture: str) -> str:
    kind = main
    if quant == "Q3_K_M":
        kind = "Q5_K" if number < 2 else "Q4_K"
    elif quant in ("Q4_K_M", "Q5_K_M") and _more_bits(number, count):
        kind = "Q6_K"
    elif quant == "Q4_K_S" and number < 4:
        kind = "Q5_K"
    if layers == _LAYERS_OF_70B and architecture in ("llama", "qwen2") and kind in ("Q3_K", "Q4_K"):
        kind = "Q5_K"
    return "Q8_0" if experts == 8 else kind


def _down(quant: str, main: str, layer: int, layers: int, architecture: str) -> str:
    falcon = architecture == "falcon"
    if quant == "Q3_K_M":
        if layer < layers // 16:
            return "Q5_K"
        return "Q3_K" if falcon and not _more_bits(layer, layers) else "Q4_K"
    if quant == "Q4_K_M" and falcon:
        return "Q6_K" if layer < layers // 16 else "Q5_K" if _more_bits(layer, layers) else "Q4_K"
    if quant in ("Q4_K_M", "Q5_K_M") and _more_bits(layer, layers):
        return "Q6_K"
    if quant == "Q4_K_S" and not falcon and layer < layers // 8:
        return "Q5_K"
    return main


def _more_bits(layer: int, layers: int) -> bool:
    return layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2


def _fitting(kind: str, columns: int) -> str:
    """The type, or one that rows of this length can be stored in."""
    if columns % SIZES[kind][0]:
        kind = _FALLBACK.get(kind, "F16")
    return "F16" if columns % SIZES[kind][0] else kind


def _may(name: str, shape: tuple[int, ...]) -> bool:
    dimensions = len(shape) - next((i for i, size in enumerate(shape) if size > 1), len(shape))
    return dimensions >= 2 and name.endswith("weight") and not any(part in name for part in _KEPT)


def _is_value(name: str) -> bool:
    return any(part in name for part in ("attn_v.weight", "attn_qkv.weight", "attn_kv_b.weight"))


def _layer(name: str) -> int:
    match = _LAYER.search(name)
    return int(match[1]) if match else 0
