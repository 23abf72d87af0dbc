"""What a LoRA adapter folder says: ranks from its weights, the rest from its config.

ΔW = scale · B · A with scale = alpha / r, or alpha / √r for rsLoRA. Ranks may differ by module (`rank_pattern`), so they are read
from the weights; the config can be wrong about them and PEFT trusts the config, so a difference is worth knowing.
"""

from __future__ import annotations

import math
from typing import Any

from mcp_server.formats.adapter_file import KEY
from mcp_server.formats.tensors import StoredTensor
from mcp_server.schemas.inspect import AdapterInfo

_FACTORS = {"lora_A": "A", "lora_B": "B", "lora_embedding_A": "A", "lora_embedding_B": "B"}


def factors(tensors: dict[str, StoredTensor]) -> dict[str, dict[str, StoredTensor]]:
    """Module path in the base model → {'A': tensor, 'B': tensor}."""
    found: dict[str, dict[str, StoredTensor]] = {}
    for name, tensor in tensors.items():
        match = KEY.match(name.removeprefix("base_model.model."))
        if match and match["part"] in _FACTORS:
            found.setdefault(match["module"], {})[_FACTORS[match["part"]]] = tensor
    return found


def module_rank(parts: dict[str, StoredTensor]) -> int | None:
    """The rank of one module's pair: rows of A, columns of B; None when only one is there or they disagree."""
    a, b = parts.get("A"), parts.get("B")
    if a is None or b is None or len(a.shape) < 2 or len(b.shape) < 2:
        return None
    return a.shape[0] if a.shape[0] == b.shape[1] else None


def describe_adapter(config: dict[str, Any], tensors: dict[str, StoredTensor]) -> AdapterInfo:
    """`AdapterInfo` from adapter_config.json and the adapter's header."""
    modules = factors(tensors)
    ranks = sorted({rank for parts in modules.values() if (rank := module_rank(parts)) is not None})
    alpha = _number(config.get("lora_alpha"))
    rslora = bool(config.get("use_rslora"))
    saved = config.get("modules_to_save")
    return AdapterInfo(
        peft_type=str(config.get("peft_type", "unknown")),
        ranks=ranks,
        alpha=alpha,
        scale=_scale(config, alpha, ranks, rslora),
        targets=sorted({module.rsplit(".", 1)[-1] for module in modules}) or _listed(config.get("target_modules")),
        base=named_base(config),
        rslora=rslora,
        dora=bool(config.get("use_dora")) or any("lora_magnitude_vector" in name for name in tensors),
        modules_to_save=_listed(saved),
    )


def named_base(config: dict[str, Any]) -> str | None:
    """The base that an adapter's config names, as its trainer knew it."""
    return str(config["base_model_name_or_path"]) if config.get("base_model_name_or_path") else None


def _scale(config: dict[str, Any], alpha: float | None, ranks: list[int], rslora: bool) -> float | None:
    if alpha is None or len(ranks) != 1 or config.get("alpha_pattern"):
        return None
    return alpha / math.sqrt(ranks[0]) if rslora else alpha / ranks[0]


def _listed(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    return sorted(str(item) for item in value) if isinstance(value, list) else []


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None
