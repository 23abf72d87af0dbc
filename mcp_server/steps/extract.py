"""What a full fine-tune changed, as an adapter: one source at full weight, whose output is an adapter of a chosen rank."""

from __future__ import annotations

from typing import Any

import yaml

from mcp_server.errors import BadInput
from mcp_server.formats.refs import anchor_whole


def extraction(base: str, finetune: str, *, rank: int, whole: list[str], dtype: str) -> dict[str, Any]:
    """The fields of a merge request that writes `finetune` − `base` as an adapter. The seed is fixed: its search directions are
    drawn, and the same call should give the same bytes. Raises `BadInput` where both are one model.
    """
    if anchor_whole(base) == anchor_whole(finetune):
        raise BadInput(f"base and fine-tune are both {finetune}", "name the model that was fine-tuned first, then the fine-tune")
    recipe = {
        "merge_method": "task_arithmetic",
        "base_model": base,
        "models": [{"model": finetune, "parameters": {"weight": 1.0}}],
        "dtype": dtype,
    }
    text = yaml.safe_dump(recipe, sort_keys=False)
    return {"recipe": text, "output": "adapter", "rank": rank, "whole": whole, "seed": 0}
