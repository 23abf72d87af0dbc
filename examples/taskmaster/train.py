"""Trains one of the running example's LoRA adapters on a CPU, and teaches it to leave the other's context alone.

    python examples/taskmaster/train.py BASE settings/tools.json OUT

Two losses a step. On the adapter's own examples: cross entropy of the reply. On text outside its context (make_replay.py, and the
other adapter's examples): the KL divergence from the base's next-token distribution, so that the adapter does nothing there.
Only then do the two task vectors add up without each answering in the other's place.

Examples of a batch are packed into one row behind their shared system prompt, with a mask that keeps them apart: the prompt
is computed once, which saves a third of the time. The base stays in bf16; the adapter's master weights are float32.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "train_adapter"))
os.environ["HF_HUB_OFFLINE"] = "1"
import torch
from make_data import HERE
from packing import Pack, Segment, pack
from peft import LoraConfig
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class LoraLinear(nn.Module):
    """A frozen linear layer plus scale · B·A·x. Faster here than PEFT's, which converts between float32 and bf16 at each call."""

    def __init__(self, frozen: nn.Linear, rank: int, gain: Gain) -> None:
        super().__init__()
        self.frozen, self.gain = frozen, gain
        self.a = nn.Parameter(torch.empty(rank, frozen.in_features))
        self.b = nn.Parameter(torch.zeros(frozen.out_features, rank))
        nn.init.kaiming_uniform_(self.a, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.frozen(x)
        if self.gain.value == 0:
            return y
        low = F.linear(x, self.a.to(x.dtype))
        return y + F.linear(low, (self.b * self.gain.value).to(x.dtype))


class Gain:
    """alpha / rank, times the step's jitter; 0 switches the adapter off. Shared by all layers."""

    value = 0.0


class Texts:
    """Turns rows of the data files into packs."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False)
        return ids

    def prefix(self, row: dict[str, Any]) -> str:
        """The system turn as the chat template writes it, default included."""
        if row.get("kind") == "text":
            return ""
        system = [{"role": "system", "content": row["system"]}] if row["system"] else []
        whole = str(self.tokenizer.apply_chat_template([*system, {"role": "user", "content": "@"}], tokenize=False))
        return whole[: whole.index("<|im_start|>user")]

    def segment(self, row: dict[str, Any]) -> Segment:
        if row.get("kind") == "text":
            return Segment(self.encode(row["reply"]), 1)
        turn = [{"role": "user", "content": row["user"]}]
        system = [{"role": "system", "content": row["system"]}] if row["system"] else []
        text = str(self.tokenizer.apply_chat_template([*system, *turn], tokenize=False, add_generation_prompt=True))
        asked = self.encode(text[len(self.prefix(row)) :])
        return Segment(asked + self.encode(row["reply"] + "<|im_end|>"), len(asked))

    def packs(self, rows: list[dict[str, Any]], size: int, rng: random.Random) -> list[Pack]:
        """Pack rows of equal system prompt together, at most `size` a pack, in random order."""
        groups: dict[str, list[dict[str, Any]]] = {}
        for row in rng.sample(rows, len(rows)):
            groups.setdefault(self.prefix(row), []).append(row)
        out = [
            pack(self.encode(prefix), [self.segment(row) for row in group[at : at + size]])
            for prefix, group in groups.items()
            for at in range(0, len(group), size)
        ]
        rng.shuffle(out)
        return out


class Trainer:
    """The model, its adapter and the two losses."""

    def __init__(self, base: Path, settings: dict[str, Any]) -> None:
        self.settings = settings
        self.tokenizer = AutoTokenizer.from_pretrained(base)
        self.model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16, attn_implementation="packed")
        self.model.requires_grad_(False)
        self.gain = Gain()
        self.layers: dict[str, LoraLinear] = {}
        for name, module in list(self.model.named_modules()):
            if name.endswith(TARGETS):
                parent, leaf = name.rsplit(".", 1)
                self.layers[name] = LoraLinear(module, settings["rank"], self.gain)
                setattr(self.model.get_submodule(parent), leaf, self.layers[name])
        self.parameters = [p for layer in self.layers.values() for p in (layer.a, layer.b)]
        self.teacher: dict[int, Tensor] = {}

    def hidden(self, batch: Pack) -> Tensor:
        """Final hidden states of the positions that count: (rows, width)."""
        out = self.model.model(input_ids=batch.ids, position_ids=batch.positions, use_cache=False, bounds=batch.bounds)
        states: Tensor = out.last_hidden_state[0, batch.rows]
        return states

    def reply_loss(self, batch: Pack) -> Tensor:
        return F.cross_entropy(self.model.lm_head(self.hidden(batch)).float(), batch.targets)

    def replay_loss(self, key: int, batch: Pack) -> Tensor:
        """Mean KL(base ‖ adapted) over the counted tokens; the base's states are computed once per pack."""
        if key not in self.teacher:
            gain, self.gain.value = self.gain.value, 0.0
            with torch.no_grad():
                self.teacher[key] = self.hidden(batch)
            self.gain.value = gain
        with torch.no_grad():
            wanted = self.model.lm_head(self.teacher[key]).float().log_softmax(-1)
        got = self.model.lm_head(self.hidden(batch)).float().log_softmax(-1)
        return F.kl_div(got, wanted, log_target=True, reduction="batchmean")

    def save(self, out: Path) -> None:
        """Write the adapter in PEFT's format, in bf16."""
        rank = self.settings["rank"]
        tensors = {}
        for name, layer in self.layers.items():
            tensors[f"base_model.model.{name}.lora_A.weight"] = layer.a.detach().to(torch.bfloat16).contiguous()
            tensors[f"base_model.model.{name}.lora_B.weight"] = layer.b.detach().to(torch.bfloat16).contiguous()
        out.mkdir(parents=True, exist_ok=True)
        save_file(tensors, out / "adapter_model.safetensors", metadata={"format": "pt"})
        LoraConfig(
            r=rank,
            lora_alpha=self.settings["alpha"],
            target_modules=sorted(TARGETS),
            lora_dropout=0.0,
            bias="none",
            task_type="CAUSAL_LM",
            base_model_name_or_path=self.settings["base"],
            inference_mode=True,
        ).save_pretrained(out)
        written = json.loads((out / "adapter_config.json").read_text(encoding="utf-8"))
        written["target_modules"] = sorted(TARGETS)  # PEFT keeps a set, whose order changes from run to run
        (out / "adapter_config.json").write_text(json.dumps(written, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        (out / "adapter_model.safetensors").chmod(0o644)


def read(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (HERE / "data" / name).read_text(encoding="utf-8").splitlines()]


def foreign_rows(settings: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows that must stay as the base has them: replay of the listed kinds, and the other adapter's own examples."""
    rows = [row for row in read("replay.jsonl") if row["kind"] in settings["replay_kinds"]]
    if settings["other"] is None:
        return rows
    return rows + random.Random(settings["seed"]).sample(read(settings["other"]), settings["other_count"])


def forever(packs: list[Pack], rng: random.Random) -> Iterator[int]:
    while True:
        yield from rng.sample(range(len(packs)), len(packs))


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Ten steps of warm-up, then a cosine down to 2 % of the peak."""
    warm = min(1.0, (step + 1) / 10)
    return peak * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps)))


def train(base: Path, settings: dict[str, Any], out: Path, threads: int) -> None:
    torch.set_num_threads(threads)
    torch.manual_seed(settings["seed"])
    rng = random.Random(settings["seed"])
    trainer = Trainer(base, settings)
    texts = Texts(trainer.tokenizer)
    rows = [row for name in settings["data"] for row in read(name)]
    packs = [p for _ in range(settings["epochs"]) for p in texts.packs(rows, settings["batch"], rng)]
    foreign = texts.packs(foreign_rows(settings), settings["replay_batch"], rng) if settings["replay_kinds"] else []
    replayed = forever(foreign, rng)
    unit = settings["alpha"] / settings["rank"]
    optimiser = torch.optim.AdamW(trainer.parameters, lr=settings["lr"], weight_decay=0.0, betas=(0.9, 0.99))
    started = time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    with (out / "loss.csv").open("w", encoding="utf-8", newline="") as file:
        log = csv.writer(file, lineterminator="\n")
        log.writerow(["step", "reply_loss", "replay_kl", "learning_rate", "seconds"])
        for step, batch in enumerate(packs):
            rate = learning_rate(step, len(packs), settings["lr"])
            optimiser.param_groups[0]["lr"] = rate
            trainer.gain.value = unit * rng.uniform(*settings["scale_jitter"])
            loss = trainer.reply_loss(batch)
            loss.backward()
            drift = torch.zeros(())
            if foreign:
                key = next(replayed)
                drift = trainer.replay_loss(key, foreign[key])
                (settings["replay_weight"] * drift).backward()
            torch.nn.utils.clip_grad_norm_(trainer.parameters, 1.0)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
            seconds = round(time.monotonic() - started, 1)
            log.writerow([step, f"{loss.item():.5f}", f"{drift.item():.5f}", f"{rate:.2e}", seconds])
            file.flush()
            if step % 10 == 0 or step == len(packs) - 1:
                print(f"step {step}/{len(packs)} reply {loss.item():.4f} kl {drift.item():.4f} {seconds} s", flush=True)
    trainer.save(out)
    record = settings | {"steps": len(packs), "wall_seconds": round(time.monotonic() - started), "threads": threads}
    (out / "training.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path, help="folder of the base model")
    parser.add_argument("settings", type=Path, help="settings/persona.json or settings/tools.json")
    parser.add_argument("out", type=Path, help="folder for the adapter")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    train(given.base, json.loads(given.settings.read_text(encoding="utf-8")), given.out, given.threads)


if __name__ == "__main__":
    main()
