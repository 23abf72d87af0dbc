"""What PEFT's own `add_weighted_adapter` makes of the same adapters, as changes of the base's weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor


class Combined:
    """The six adapters on one base."""

    def __init__(self, model: Any, adapters: Path, names: Sequence[str]) -> None:
        first, *others = names
        self.model = PeftModel.from_pretrained(model, adapters / first, adapter_name=first)
        for name in others:
            self.model.load_adapter(adapters / name, adapter_name=name)
        self.layers = {
            name.removeprefix("base_model.model.") + ".weight": module
            for name, module in self.model.named_modules()
            if isinstance(module, LoraLayer)
        }

    @torch.no_grad()
    def changes(self, names: Sequence[str], kind: str, seed: int = 0) -> dict[str, Tensor]:
        """ΔW by name of weight. Raises ValueError where PEFT refuses, as it does `linear` of unequal ranks."""
        torch.manual_seed(seed)
        density = 0.5 if kind.startswith(("ties", "dare")) else None
        self.model.add_weighted_adapter(
            list(names), [1.0] * len(names), "combined", combination_type=kind, density=density, majority_sign_method="total"
        )
        try:
            return {name: layer.get_delta_weight("combined") for name, layer in self.layers.items()}
        finally:
            self.model.delete_adapter("combined")
