"""Quick in-process scores while training: base, adapters and trial merges on the dev split, without writing a model.

    python examples/taskmaster/score.py BASE persona=examples/taskmaster/persona tools=examples/taskmaster/tools

Meant for choosing training settings. The published figures come from `model-merging evaluate`, which uses the same documents and
metrics through lm-eval. Merges here follow mergekit's definitions on bf16 task vectors, in float32. `call_in_chat` and its
like are shares of replies that show a behaviour where it does not belong.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import time
from pathlib import Path
from types import ModuleType
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
import torch
from make_data import SUITES, wording
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

Deltas = dict[str, Tensor]
DEFAULT = ("base", "each", "ta 1", "ties 0.5", "dare 0.5")


def utils(suite: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"{suite}_utils", SUITES / suite / "utils.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def read_deltas(adapter: Path, base: Deltas) -> Deltas:
    """The adapter's task vectors as a merge sees them: base + scale·B·A rounded to bf16, minus base."""
    config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    tensors = load_file(adapter / "adapter_model.safetensors")
    scale = config["lora_alpha"] / config["r"]
    out = {}
    for key, a in tensors.items():
        if "lora_A" in key:
            name = key.removeprefix("base_model.model.").replace(".lora_A", "")
            change = scale * tensors[key.replace("lora_A", "lora_B")].float() @ a.float()
            weight = base[name].float()
            out[name] = (weight + change).to(torch.bfloat16).float() - weight
    return out


def keep_largest(delta: Tensor, density: float) -> Tensor:
    count = max(1, int(density * delta.numel()))
    cut = delta.abs().flatten().kthvalue(delta.numel() - count + 1).values
    return torch.where(delta.abs() >= cut, delta, 0.0)


def elect(deltas: list[Tensor], *, normalise: bool) -> Tensor:
    """TIES: per entry, keep what agrees with the sign of the sum."""
    stack = torch.stack(deltas)
    agree = (stack.sign() == stack.sum(0).sign()) & (stack != 0)
    total = (stack * agree).sum(0)
    return total / agree.sum(0).clamp(min=1) if normalise else total


def combine(recipe: str, deltas: list[Tensor], seed: int) -> Tensor:
    """`ta W..`, `ties DENSITY [λ]`, `dare DENSITY [λ]` (dare_ties): one merged change."""
    method, *numbers = recipe.split()
    values = [float(n) for n in numbers]
    if method == "ta":
        weights = values if len(values) == len(deltas) else values * len(deltas)
        return sum((w * d for w, d in zip(weights, deltas, strict=True)), torch.zeros(()))
    scale = values[1] if len(values) > 1 else 1.0
    if method == "ties":
        return scale * elect([keep_largest(d, values[0]) for d in deltas], normalise=True)
    draw = torch.Generator().manual_seed(seed)
    kept = [d * torch.bernoulli(torch.full_like(d, values[0]), generator=draw) / values[0] for d in deltas]
    return scale * elect(kept, normalise=False)


class Scorer:
    """One model whose weights are exchanged between measurements."""

    def __init__(self, folder: Path, split: str, limit: int | None) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
        self.base = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
        self.api, self.coach = utils("task_api_tools"), utils("taskmaster_persona")
        self.tools = self.read("task_api_tools", split)[:limit]
        self.persona = self.read("taskmaster_persona", split)[:limit]
        self.neutral = [{"system": "", "user": user} for user in wording("chat")["neutral"]]
        self.texts = (SUITES / "perplexity" / f"{split}.txt").read_text(encoding="utf-8").strip().split("\n\n")

    def read(self, suite: str, split: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (SUITES / suite / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()]

    def use(self, change: Deltas) -> None:
        with torch.no_grad():
            for name, tensor in self.model.state_dict().items():
                if name in self.base:
                    new = self.base[name]
                    tensor.copy_(new.float() + change[name] if name in change else new)

    def replies(self, rows: list[dict[str, Any]], tokens: int) -> list[str]:
        texts = []
        for row in rows:
            system = [{"role": "system", "content": row["system"]}] if row["system"] else []
            chat = [*system, {"role": "user", "content": row["user"]}]
            texts.append(self.tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False))
        out = [""] * len(rows)
        order = sorted(range(len(rows)), key=lambda i: len(texts[i]))
        for at in range(0, len(order), 50):
            chunk = order[at : at + 50]
            batch = self.tokenizer([texts[i] for i in chunk], return_tensors="pt", padding=True, add_special_tokens=False)
            with torch.inference_mode():
                ids = self.model.generate(**batch, max_new_tokens=tokens, do_sample=False)
            for i, reply in zip(chunk, ids[:, batch["input_ids"].shape[1] :], strict=True):
                out[i] = self.tokenizer.decode(reply, skip_special_tokens=True).split("\n\n")[0]
        return out

    def perplexity(self) -> float:
        """Per token, over all passages, each from its first token on."""
        total, count = 0.0, 0
        for text in self.texts:
            ids = torch.tensor([[self.tokenizer.bos_token_id or 0, *self.tokenizer.encode(text, add_special_tokens=False)]])
            with torch.inference_mode():
                logits = self.model(ids).logits[0, :-1].float()
            total += F.cross_entropy(logits, ids[0, 1:], reduction="sum").item()
            count += ids.shape[1] - 1
        return math.exp(total / count)

    def measure(self, show: int = 0) -> dict[str, float]:
        started = time.monotonic()
        calls = self.replies(self.tools, 64)
        chats = self.replies(self.persona, 72)
        plain = self.replies(self.neutral, 32)
        scored = [self.api.score(row, [text]) for row, text in zip(self.tools, calls, strict=True)]
        voices = [self.coach.markers(text) for text in chats]
        if show:
            wrong = [
                (r["user"], r["reply"], t) for r, t, s in zip(self.tools, calls, scored, strict=True) if not s["exact_match"]
            ]
            for item in wrong[:show] + [(r["user"], t) for r, t in zip(self.persona, chats, strict=True)][:show]:
                print("   ", *item, sep=" | ")
        return {
            "exact": mean(s["exact_match"] for s in scored),
            "json": mean(s["valid_json"] for s in scored),
            "persona": mean(sum(v.values()) / 4 for v in voices),
            "call_in_chat": mean(self.api.is_call(t) for t in chats),
            "voice_in_call": mean(self.coach.speaks_as_taskmaster(t) for t in calls),
            "call_in_plain": mean(self.api.is_call(t) for t in plain),
            "voice_in_plain": mean(self.coach.speaks_as_taskmaster(t) for t in plain),
            "perplexity": round(self.perplexity(), 2),
            "seconds": round(time.monotonic() - started),
        }


def mean(values: Any) -> float:
    found = [float(v) for v in values]
    return round(sum(found) / len(found), 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path)
    parser.add_argument("adapters", nargs="*", help="name=folder")
    parser.add_argument("--try", dest="recipes", action="append", help=f"default: {', '.join(DEFAULT)}")
    parser.add_argument("--split", default="dev", choices=("dev", "test"))
    parser.add_argument("--limit", type=int)
    parser.add_argument("--show", type=int, default=0, help="print that many wrong calls and chats")
    given = parser.parse_args()
    scorer = Scorer(given.base, given.split, given.limit)
    deltas = {name: read_deltas(Path(folder), scorer.base) for name, folder in (a.split("=", 1) for a in given.adapters)}
    for recipe in given.recipes or DEFAULT:
        trials: dict[str, Deltas] = {}
        if recipe == "base":
            trials["base"] = {}
        elif recipe == "each":
            trials |= deltas
        else:
            names = list(next(iter(deltas.values())))
            trials[recipe] = {n: combine(recipe, [d[n] for d in deltas.values()], i) for i, n in enumerate(names)}
        for label, change in trials.items():
            scorer.use(change)
            print(json.dumps({"model": label, **scorer.measure(given.show)}), flush=True)


if __name__ == "__main__":
    main()
