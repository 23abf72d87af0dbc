"""A merge straight into a model in memory: what the engine would write, without a file."""

from __future__ import annotations

from typing import Any

import torch

from mcp_server.engine.in_memory import InMemory


def merge_into(model: Any, recipe: str, seed: int = 0) -> None:
    """Give `model` the weights of a recipe's merge, rounded as they would be stored. Raises what a merge raises."""
    weights = dict(model.named_parameters(remove_duplicate=False))

    def take(tensor: Any, raw: Any) -> None:
        with torch.no_grad():
            found = torch.from_numpy(raw).view(getattr(torch, tensor.dtype)).reshape(tensor.shape)
            weights[tensor.name].copy_(found)

    InMemory(recipe, seed).run(take, lambda *_: None, threads=1)
