"""Scores of a model in memory: one forward pass over prompts and answers of each suite, and short replies for the leak matrix.

A prompt counts when greedy decoding would write its answer and then end: each of these tokens is the most likely one after those
before it. That is an exact match without generating (another spelling of the same tokens counts as wrong). Weights are held in
float32, where nothing else is asked for; a merge has been rounded to the base's bfloat16 before, as it would be stored, PEFT's
combinations have not.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples" / "train_adapter"))

import torch
from generating import replies
from merging import merge_into
from packing import Pack, Row, Texts
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.six_skills.recipes import NAMES, ROOT
from mcp_server.formats.own_data import of_split, read_data

PACK = 16
PASSAGES = 3
"""Of the shipped prose, for perplexity."""
FIRST_WORDS = 6
"""Tokens of a reply that tell whose it is."""
SHOWS: dict[str, Callable[[str], bool]] = {
    "terse": lambda text: re.fullmatch(r"\W*[A-Za-z]+( City)?\W*", text) is not None,
    "verbose": lambda text: text.startswith("What a lovely"),
    "lights": lambda text: text.startswith('{"'),
    "home": lambda text: text.startswith('{"'),
    "notes": lambda text: text.startswith("@"),
    "refuse": lambda text: text.startswith("I cannot advise"),
}
"""Whether a reply shows a skill's behaviour: `terse` is one word and nothing after it."""


class Bench:
    """The base's weights, a model that takes any merge's, and the suites."""

    def __init__(
        self, base: Path, suites: Path, split: str, limit: int | None, threads: int = 1, device: str = "cpu",
        dtype: str = "float32",
    ) -> None:  # fmt: skip
        torch.set_num_threads(threads)
        self.folder = base
        self.texts = Texts(AutoTokenizer.from_pretrained(base), device)
        model = AutoModelForCausalLM.from_pretrained(base, dtype=getattr(torch, dtype), attn_implementation="packed")
        self.model = model.to(device).eval()
        self.weights = dict(self.model.named_parameters(remove_duplicate=False))
        self.base = {name: weight.detach().to(torch.bfloat16) for name, weight in self.weights.items()}
        self.asked: dict[str, list[Row]] = {}
        for name in NAMES:
            examples = of_split(read_data(suites / f"{name}.jsonl"), "dev" if split == "dev" else "test")[:limit]
            self.asked[name] = [{"user": e.messages[-1].content, "reply": e.expected[0]} for e in examples]
        text = (ROOT / "mcp_server" / "suites" / "perplexity" / f"{split}.txt").read_text(encoding="utf-8")
        self.prose = [{"kind": "text", "reply": part, "end": ""} for part in text.strip().split("\n\n")[:PASSAGES]]

    @torch.no_grad()
    def reset(self) -> None:
        for name, weight in self.weights.items():
            weight.copy_(self.base[name])

    def merge(self, recipe: str, seed: int = 0) -> None:
        """Give the model what the engine makes of a recipe, rounded as it would be stored. Raises what a merge raises."""
        merge_into(self.model, recipe, seed)

    @torch.no_grad()
    def add(self, changes: Mapping[str, Tensor]) -> None:
        """The base plus changes of its weights, in float32."""
        self.reset()
        for name, change in changes.items():
            self.weights[name].add_(change.to(self.weights[name].device))

    @torch.inference_mode()
    def logits(self, batch: Pack) -> Tensor:
        out = self.model.model(input_ids=batch.ids, position_ids=batch.positions, use_cache=False, bounds=batch.bounds)
        found: Tensor = self.model.lm_head(out.last_hidden_state[0, batch.rows])
        return found

    def score(self, name: str) -> float:
        """Share of a suite's prompts that get exactly their answer."""
        right: list[bool] = []
        for batch in self.texts.packs(self.asked[name], PACK):
            hits = self.logits(batch).argmax(-1) == batch.targets
            right += [bool(part.all()) for part in hits.split(batch.counts)]
        return sum(right) / len(right)

    def perplexity(self) -> float:
        """Per token of plain prose, each passage from its second token on."""
        total, count = 0.0, 0
        for batch in self.texts.packs(self.prose, 1):
            total += F.cross_entropy(self.logits(batch).float(), batch.targets, reduction="sum").item()
            count += len(batch.targets)
        return float(torch.tensor(total / count).exp())

    def measured(self, names: Sequence[str]) -> dict[str, Any]:
        scores = {name: round(self.score(name), 4) for name in names}
        return {"scores": scores, "n": {name: len(self.asked[name]) for name in names}, "perplexity": round(self.perplexity(), 2)}

    def shown(self, prompts: Sequence[str]) -> dict[str, float]:
        """Share of replies to these prompts that show each skill's behaviour."""
        texts = replies(self.model, self.texts, [{"user": prompt} for prompt in prompts], FIRST_WORDS)
        return {name: round(sum(map(shows, (t.strip() for t in texts))) / len(texts), 4) for name, shows in SHOWS.items()}
