"""The commands that serve a merge where its folder is read as it is: vLLM, and MLX's converter."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any, Final

from mcp_server.errors import Unsupported

LORA_RANKS: Final = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM's --max-lora-rank takes (vllm.config.lora.MaxLoRARanks)."""


def vllm_command(folder: Path, config: dict[str, Any] | None, base: str | None) -> str:
    """`vllm serve` for a model's folder, or for the base with the adapter as a LoRA module. `config` is the adapter's.

    Raises `Unsupported` for adapters that vLLM refuses.
    """
    name = shlex.quote(folder.name)
    if config is None:
        return f"vllm serve {shlex.quote(str(folder))} --served-model-name {name}"
    reason = None
    if config.get("use_dora"):
        reason = "it is a DoRA adapter"
    elif config.get("bias") not in (None, "none"):
        reason = f"it trains biases ({config['bias']})"
    elif config.get("modules_to_save"):
        reason = f"it stores whole modules ({', '.join(map(str, config['modules_to_save']))})"
    ranks = [config.get("r", 8), *(config.get("rank_pattern") or {}).values()]
    rank = max((r for r in ranks if isinstance(r, int)), default=8)
    if rank > LORA_RANKS[-1]:
        reason = f"its rank {rank} is above {LORA_RANKS[-1]}"
    if reason is not None:
        raise Unsupported(
            f"vLLM does not serve {folder} as a LoRA module: {reason}", "merge it into its base, then export the model"
        )
    if base and base.startswith("-"):  # an adapter's config may hold anything, and this becomes a word of a command
        raise Unsupported(f"{folder} names its base as {base!r}, which is no model", "name its base")
    allowed = next(r for r in LORA_RANKS if r >= rank)
    module = shlex.quote(f"{folder.name}={folder}")
    return f"vllm serve {shlex.quote(base or 'BASE')} --enable-lora --max-lora-rank {allowed} --lora-modules {module}"


def mlx_command(folder: Path, target: str, quant: str | None) -> str:
    bits = {"Q8_0": " -q --q-bits 8", "Q6_K": " -q --q-bits 6", "Q4_K_M": " -q --q-bits 4"}.get(quant or "", "")
    return f"mlx_lm.convert --hf-path {shlex.quote(str(folder))} --mlx-path {shlex.quote(target)}{bits}"
