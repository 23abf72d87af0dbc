"""Trains a LoRA adapter on your own JSONL, on a CPU or a GPU, so that it merges well: PEFT and a plain loop.

    python examples/train_adapter/train_adapter.py BASE settings.json OUT

A settings file names its data relative to itself (README.md explains every key). Each step adds two losses: the cross entropy of
your replies, and on prompts that are not this adapter's the KL divergence from what the base says there (replay). alpha is
multiplied by a random number each step (scale jitter). Every `check_every` steps held-out rows are looked at: how many of your
replies come out exactly, and on how many foreign prompts the adapter still says what the base says: the cross-context check.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import random
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
import torch
from packing import Pack, Row, Texts
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
DEFAULTS: dict[str, Any] = {
    "system": "", "replay": [], "start_from": None, "rank": 16, "alpha": 32, "first_layer": 0, "lr": 8e-4, "steps": 200,
    "batch": 10, "replay_batch": 4, "replay_weight": 2.0, "kl": True, "scale_jitter": [0.6, 1.15], "held_out": 24,
    "check_every": 20, "stop_after": None, "seed": 1, "dtype": "float32",
}  # fmt: skip
FIRST_TOKENS = 8
"""A foreign reply counts as kept when its first tokens are the base's own: they decide who answers."""


class Adapter:
    """A frozen base with one trainable adapter."""

    def __init__(self, base: Path, settings: dict[str, Any], home: Path, device: str = "cpu") -> None:
        self.texts = Texts(AutoTokenizer.from_pretrained(base), device)
        self.dtype = getattr(torch, settings["dtype"])
        model = AutoModelForCausalLM.from_pretrained(base, dtype=self.dtype, attn_implementation="packed").to(device)
        if settings["start_from"]:
            self.model = PeftModel.from_pretrained(model, home / settings["start_from"], is_trainable=True)
        else:
            config = LoraConfig(r=settings["rank"], lora_alpha=settings["alpha"], target_modules=TARGETS, task_type="CAUSAL_LM")
            self.model = get_peft_model(model, config)
        for name, parameter in self.model.named_parameters():
            found = re.search(r"layers\.(\d+)\.", name)
            parameter.requires_grad_(parameter.requires_grad and found is not None and int(found[1]) >= settings["first_layer"])
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.layers = [module for module in self.model.modules() if isinstance(module, LoraLayer)]
        self.body, self.head = model.model, model.lm_head

    def scale(self, factor: float) -> None:
        """Use the adapter at `factor` times its alpha."""
        for layer in self.layers:
            layer.set_scale("default", factor)

    def logits(self, batch: Pack) -> Tensor:
        """Logits of the positions that count: (rows, vocabulary), float32."""
        with torch.autocast(batch.ids.device.type, self.dtype, enabled=self.dtype != torch.float32):
            out = self.body(input_ids=batch.ids, position_ids=batch.positions, use_cache=False, bounds=batch.bounds)
            found: Tensor = self.head(out.last_hidden_state[0, batch.rows])
        return found.float()

    @torch.no_grad()
    def of_base(self, batch: Pack) -> Tensor:
        """The base's log-probabilities at the same positions."""
        with self.model.disable_adapter():
            return self.logits(batch).log_softmax(-1)

    def own_loss(self, batch: Pack) -> Tensor:
        return F.cross_entropy(self.logits(batch), batch.targets)

    def replay_loss(self, batch: Pack, *, kl: bool) -> Tensor:
        """KL(base ‖ adapted), mean over the counted tokens; without `kl`, the cross entropy of the base's own words."""
        got = self.logits(batch)
        if not kl:
            return F.cross_entropy(got, batch.targets)
        return F.kl_div(got.log_softmax(-1), self.of_base(batch), log_target=True, reduction="batchmean")

    @torch.no_grad()
    def agreement(self, packs: list[Pack], first: int | None = None) -> float:
        """Share of replies whose tokens (the first ones only, where a number is given) are each the most likely: greedy decoding
        would write exactly them."""
        right = []
        for batch in packs:
            hits = self.logits(batch).argmax(-1) == batch.targets
            right += [bool(part[:first].all()) for part in hits.split(batch.counts)]
        return sum(right) / len(right) if right else float("nan")

    def save(self, out: Path, settings: dict[str, Any]) -> None:
        """PEFT's format, weights in bf16: half the size, and what a bf16 base would round to anyway."""
        state = {k: v.to(torch.bfloat16) for k, v in self.model.state_dict().items() if "lora_" in k}
        self.scale(1.0)
        self.model.save_pretrained(out, state_dict=state)
        (out / "README.md").unlink(missing_ok=True)  # PEFT's empty model card
        config = json.loads((out / "adapter_config.json").read_text(encoding="utf-8"))
        config["target_modules"] = sorted(config["target_modules"])  # PEFT keeps a set, whose order changes from run to run
        config["base_model_name_or_path"] = settings.get("base", config["base_model_name_or_path"])
        written = json.dumps(config, indent=2, sort_keys=True) + "\n"
        (out / "adapter_config.json").write_text(written, encoding="utf-8")


def read(home: Path, names: list[str], system: str) -> list[Row]:
    """Rows of some JSONL files; those without a system prompt get the shared one."""
    lines = [line for name in names for line in (home / name).read_text(encoding="utf-8").splitlines() if line.strip()]
    return [{"system": system} | json.loads(line) for line in lines]


def forever(packs: list[Pack], rng: random.Random) -> Iterator[Pack]:
    while packs:
        yield from rng.sample(packs, len(packs))


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Ten steps of warm-up, then a cosine down to 2 % of the peak."""
    return peak * min(1.0, (step + 1) / 10) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps)))


def train(base: Path, file: Path, out: Path, threads: int, device: str = "cpu", make: type[Adapter] = Adapter) -> None:
    """Train what `make` makes of the base. On a GPU matrices are multiplied in TensorFloat-32."""
    if device == "cuda":
        torch.set_float32_matmul_precision("high")
    settings = DEFAULTS | json.loads(file.read_text(encoding="utf-8"))
    torch.set_num_threads(threads)
    torch.manual_seed(settings["seed"])
    rng = random.Random(settings["seed"])
    adapter = make(base, settings, file.parent, device)
    own = read(file.parent, settings["data"], settings["system"])
    foreign = read(file.parent, settings["replay"], settings.get("replay_system", settings["system"]))
    own, foreign = rng.sample(own, len(own)), rng.sample(foreign, len(foreign))
    if settings.get("replay_kinds"):
        foreign = [row for row in foreign if row.get("kind") in settings["replay_kinds"]]
    kept = settings["held_out"]
    watched = adapter.texts.packs(own[:kept], settings["batch"])
    abroad = adapter.texts.packs(foreign[:kept], settings["batch"])
    learned = forever(adapter.texts.packs(own[kept:], settings["batch"], rng), rng)
    few = settings["replay_batch"]
    replayed = forever(adapter.texts.packs(foreign[kept:], few, rng) if few else [], rng)
    optimiser = torch.optim.AdamW(adapter.parameters, lr=settings["lr"], weight_decay=0.0, betas=(0.9, 0.99))
    started = time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    with (out / "loss.csv").open("w", encoding="utf-8", newline="") as table:
        log = csv.writer(table, lineterminator="\n")
        log.writerow(["step", "reply_loss", "replay_loss", "own_exact", "foreign_kept", "seconds"])
        last = (settings["stop_after"] or settings["steps"]) - 1
        for step in range(last + 1):
            optimiser.param_groups[0]["lr"] = learning_rate(step, settings["steps"], settings["lr"])
            adapter.scale(rng.uniform(*settings["scale_jitter"]))
            loss = adapter.own_loss(next(learned))
            loss.backward()
            replay = next(replayed, None)
            drift = torch.zeros(())
            if replay is not None:
                drift = adapter.replay_loss(replay, kl=settings["kl"])
                (settings["replay_weight"] * drift).backward()
            torch.nn.utils.clip_grad_norm_(adapter.parameters, 1.0)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
            checks = ["", ""]
            if step % settings["check_every"] == settings["check_every"] - 1 or step == last:
                adapter.scale(1.0)
                checks = [f"{adapter.agreement(watched):.3f}", f"{adapter.agreement(abroad, FIRST_TOKENS):.3f}"]
                adapter.save(out, settings)
            row = [step, f"{loss.item():.5f}", f"{drift.item():.5f}", *checks, round(time.monotonic() - started, 1)]
            log.writerow(row)
            table.flush()
            print(*row, flush=True)
    where = {"device": torch.cuda.get_device_name()} if device == "cuda" else {"threads": threads}
    record = settings | {"wall_seconds": round(time.monotonic() - started), **where}
    (out / "training.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path, help="folder of the base model")
    parser.add_argument("settings", type=Path, help="a JSON file; data and replay are relative to it")
    parser.add_argument("out", type=Path, help="folder for the adapter")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    given = parser.parse_args()
    train(given.base, given.settings, given.out, given.threads, given.device)


if __name__ == "__main__":
    main()
