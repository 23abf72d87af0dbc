"""A full fine-tune of the same matrices that the adapters change, with the same data format, settings and loop.

    python examples/six_skills/train_full.py BASE settings/home.json OUT/home-full
    model-merging extract BASE OUT/home-full examples/six_skills/home --rank 20

All weights of the projections are trained; embeddings and norms stay, so that the change can be written as an adapter. float32,
because changes this small would be rounded away in bf16. About 2 GB of memory.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "train_adapter"))
import torch
from packing import Pack, Texts
from torch import Tensor
from train_adapter import TARGETS, Adapter, train
from transformers import AutoModelForCausalLM, AutoTokenizer


class Whole(Adapter):
    """A model whose projections are trained themselves."""

    def __init__(self, base: Path, _settings: dict[str, Any], _home: Path, device: str = "cpu") -> None:
        tokenizer = AutoTokenizer.from_pretrained(base)
        self.texts = Texts(tokenizer, device)
        self.model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, attn_implementation="packed").to(device)
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(name.split(".")[-2] in TARGETS)
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.layers = []
        self.body, self.head = self.model.model, self.model.lm_head

    def of_base(self, batch: Pack) -> Tensor:
        raise NotImplementedError("a full fine-tune has no base beside it; leave replay_batch at 0, or kl false")

    def save(self, out: Path, _settings: dict[str, Any]) -> None:
        """The whole model in float32, as transformers writes it."""
        self.model.save_pretrained(out)
        self.texts.tokenizer.save_pretrained(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path)
    parser.add_argument("settings", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    given = parser.parse_args()
    train(given.base, given.settings, given.out, given.threads, given.device, Whole)


if __name__ == "__main__":
    main()
