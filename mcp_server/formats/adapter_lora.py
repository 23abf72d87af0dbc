"""The update that one module of a LoRA adapter makes: its factors, scale and orientation, held against the weight's shape."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

from mcp_server.errors import Incompatible, Malformed, Unsupported
from mcp_server.formats.adapter_file import Module
from mcp_server.formats.adapter_kinds import MERGE_FIRST
from mcp_server.formats.adapter_patterns import Scales
from mcp_server.formats.class_facts import is_conv1d
from mcp_server.formats.updates import LowRank

_DEFAULT_RANK: Final = 8
_DEFAULT_ALPHA: Final = 8
_MAX_ALPHA: Final = 1e9


def low_rank(
    ref: str,
    own: dict[str, Any],
    scales: Scales,
    config: Mapping[str, Any],
    module: Module,
    name: str,
    shape: tuple[int, ...],
) -> LowRank:
    """Raises `Malformed`, `Unsupported` or `Incompatible` when the factors are no update of a weight of this shape."""
    parts = dict(module.parts)
    magnitude = parts.pop("lora_magnitude_vector", None)
    embedding = "lora_embedding_A" in parts or "lora_embedding_B" in parts
    wanted = ("lora_embedding_A", "lora_embedding_B") if embedding else ("lora_A", "lora_B")
    if set(parts) != set(wanted):
        raise Malformed(f"{module.stem} of {ref} has {sorted(parts)} instead of {list(wanted)}", "save the adapter again")
    if bool(own.get("use_dora")) != (magnitude is not None):
        raise Malformed(
            f"{module.stem} of {ref} has {'a' if magnitude else 'no'} lora_magnitude_vector, its config says "
            f"use_dora: {str(bool(own.get('use_dora'))).lower()}",
            "the adapter and its config do not belong together; save it again",
        )
    a, b = (parts[part] for part in wanted)
    experts = shape[0] if len(shape) == 3 and len(a.shape) == 2 else 1
    if len(a.shape) < 2 or len(b.shape) < 2 or (0 in (*a.shape, *b.shape) and 0 not in shape):
        raise Malformed(
            f"{module.stem} of {ref}: A is {list(a.shape)}, B is {list(b.shape)}: its weights were sharded when it was saved",
            "gather them first (FSDP summon_full_params, DeepSpeed GatheredParameters), then save it again",
        )
    rank = a.shape[0] // experts
    key = name.removesuffix(".weight")
    declared = scales.rank.value((module.stem, key), own.get("r", _DEFAULT_RANK))
    if len(b.shape) > 2 and b.shape[1] != rank:
        raise Unsupported(f"{module.stem} of {ref} adapts a grouped convolution (B is {list(b.shape)})", MERGE_FIRST)
    if b.shape[1] != rank * experts or declared != rank:
        raise Malformed(
            f"{module.stem} of {ref}: A is {list(a.shape)}, B is {list(b.shape)}, the config says r={declared!r}",
            "the adapter and its config do not belong together; save it again",
        )
    alpha = scales.alpha.value((module.stem, key), own.get("lora_alpha", _DEFAULT_ALPHA))
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not abs(alpha) < _MAX_ALPHA:
        raise Malformed(
            f"{module.stem} of {ref} has the scale alpha={alpha!r} over r={rank}, which is no number", "save the adapter again"
        )
    scale = float(alpha) / (math.sqrt(rank) if own.get("use_rslora") else rank)
    if len(a.shape) > 2:
        return LowRank(a, b, rank, scale, transposed=False, magnitude=magnitude)
    full, flipped = (b.shape[0], a.shape[1]), (a.shape[1], b.shape[0])
    if tuple(shape[-2:]) not in (full, flipped):
        raise other_shape(ref, module.stem, full, shape)
    transposed = tuple(shape[-2:]) == flipped if full != flipped else embedding or _stores_in_out(own, config, name, experts)
    return LowRank(a, b, rank, scale, transposed, experts, magnitude=magnitude)


def _stores_in_out(own: dict[str, Any], config: Mapping[str, Any], name: str, experts: int) -> bool:
    """Whether a square weight is stored as (in, out): by the class of the layer; by PEFT's flag where the class is not known."""
    if experts > 1:
        return is_conv1d(config, name.rpartition(".")[0], experts=True) is True
    known = is_conv1d(config, name.removesuffix(".weight"))
    return bool(own.get("fan_in_fan_out")) if known is None else known


def other_shape(ref: str, stem: str, update: tuple[int, ...], shape: tuple[int, ...]) -> Incompatible:
    return Incompatible(
        f"{stem} of {ref} makes an update of {list(update)}, the base's weight is {list(shape)}",
        "give a base of the adapter's size",
    )


def token_indices(ref: str, own: dict[str, Any], module: Module) -> tuple[int, ...]:
    listed = own.get("trainable_token_indices") or own.get("token_indices") or []
    if isinstance(listed, dict):
        listed = next((v for k, v in listed.items() if module.stem == k or module.stem.endswith(f".{k}")), [])
    rows = module.parts["tokens"].shape[0]
    if not isinstance(listed, list) or not all(isinstance(i, int) and i >= 0 for i in listed) or len(listed) != rows:
        raise Malformed(
            f"{module.stem} of {ref} has {rows} trained rows, its config names {len(listed)} tokens", "save the adapter again"
        )
    return tuple(listed)
