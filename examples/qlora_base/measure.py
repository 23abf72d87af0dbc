"""Which base a QLoRA belongs on: the 16-bit original, or the 4-bit copy that it was trained on, unpacked.

    python examples/qlora_base/measure.py BASE WORK --task persona --steps 50 --batch 4 --lr 1e-3 --seed 0

BASE is packed to NF4 (bitsandbytes: blocks of 64, double-quantised, every linear layer of the body), an adapter is trained with
PEFT on the unpacked copy, and this product folds it onto the original and onto the copy. Measured on the development split of the
task's suite: the loss of the reply, the share of replies whose every token is the most likely one, and perplexity on the shipped
text. Prints what it found, and writes it with the settings to WORK.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

ROOT = Path(__file__).resolve().parents[2]
SUITES = ROOT / "mcp_server" / "suites"
DATA = {
    "tools": (ROOT / "examples" / "taskmaster" / "data" / "tools_train.jsonl", SUITES / "task_api_tools" / "dev.jsonl"),
    "persona": (ROOT / "examples" / "taskmaster" / "data" / "persona_train.jsonl", SUITES / "taskmaster_persona" / "dev.jsonl"),
}
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def pack(base: Path, out: Path) -> None:
    """A 4-bit copy as transformers saves it."""
    out.mkdir(parents=True)
    stored: dict[str, torch.Tensor] = {}
    for name, value in load_file(base / "model.safetensors").items():
        if not name.endswith("_proj.weight"):
            stored[name] = value
            continue
        codes, state = quantize_4bit(value, blocksize=64, compress_statistics=True, quant_type="nf4")
        stored[name] = codes
        stored |= {f"{name}.{key}": part for key, part in state.as_dict(packed=True).items()}
    save_file(stored, out / "model.safetensors", metadata={"format": "pt"})
    for file in base.iterdir():
        if file.suffix != ".safetensors":
            shutil.copyfile(file, out / file.name)
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    said = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
    (out / "config.json").write_text(json.dumps(config | {"quantization_config": said}, indent=2) + "\n", encoding="utf-8")


def unpacked(base: Path, dtype: torch.dtype = torch.float32) -> Any:
    """The original with every packed layer as bitsandbytes packs and unpacks it."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("_proj.weight"):
                codes, state = quantize_4bit(parameter.data, blocksize=64, compress_statistics=True, quant_type="nf4")
                parameter.copy_(dequantize_4bit(codes, state))
    return model.to(dtype)


class Texts:
    def __init__(self, base: Path) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(base)

    def row(self, entry: dict[str, Any]) -> tuple[list[int], list[int]]:
        """(prompt, reply), token ids."""
        turns = [{"role": "system", "content": entry["system"]}, {"role": "user", "content": entry["user"]}]
        prompt = self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        reply = str(entry["reply"]) + self.tokenizer.eos_token
        first, second = (self.tokenizer(text, add_special_tokens=False).input_ids for text in (prompt, reply))
        return first, second

    def batch(self, rows: list[tuple[list[int], list[int]]]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(ids, attention, targets: the next token where it is learned, else −100)."""
        longest = max(len(prompt) + len(reply) for prompt, reply in rows)
        ids, seen, targets = (torch.full((len(rows), longest), fill) for fill in (0, 0, -100))
        for i, (prompt, reply) in enumerate(rows):
            whole = prompt + reply
            ids[i, : len(whole)], seen[i, : len(whole)] = torch.tensor(whole), 1
            targets[i, len(prompt) - 1 : len(whole) - 1] = torch.tensor(reply)
        return ids, seen, targets


def read(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]


def train(base: Path, out: Path, data: Path, given: argparse.Namespace) -> list[float]:
    """A plain loop: cross entropy of the reply, AdamW, warm-up and cosine. Returns the losses."""
    torch.manual_seed(given.seed)
    model = get_peft_model(
        unpacked(base), LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, target_modules=TARGETS, task_type="CAUSAL_LM")
    )
    texts, rng = Texts(base), random.Random(given.seed)
    rows = [texts.row(entry) for entry in read(data)]
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=given.lr, weight_decay=0.0)
    losses = []
    for step in range(given.steps):
        share = min(1.0, (step + 1) / 5) * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * step / given.steps)))
        optimiser.param_groups[0]["lr"] = given.lr * share
        ids, seen, targets = texts.batch(rng.sample(rows, given.batch))
        places = targets >= 0
        hidden = model.base_model.model.model(input_ids=ids, attention_mask=seen).last_hidden_state[places]
        loss = F.cross_entropy(model.base_model.model.lm_head(hidden), targets[places])
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        losses.append(loss.item())
        print(f"step {step} loss {loss.item():.4f}", file=sys.stderr, flush=True)
    model.save_pretrained(out)
    config = json.loads((out / "adapter_config.json").read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = str(base)
    (out / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return losses


@torch.no_grad()
def measured(model: Any, texts: Texts, rows: list[tuple[list[int], list[int]]], passages: list[str]) -> dict[str, float]:
    """Mean loss of a reply token, the share of replies that greedy decoding would write, perplexity of plain text."""
    model.eval()
    total = count = right = 0.0
    for at in range(0, len(rows), 8):
        ids, seen, targets = texts.batch(rows[at : at + 8])
        places = targets >= 0
        logits = model.lm_head(model.model(input_ids=ids, attention_mask=seen).last_hidden_state[places]).float()
        total += F.cross_entropy(logits, targets[places], reduction="sum").item()
        count += int(places.sum())
        hits = torch.ones_like(targets, dtype=torch.bool)
        hits[places] = logits.argmax(-1) == targets[places]
        right += int(hits.all(1).sum())
    plain = tokens = 0.0
    for passage in passages:
        ids = texts.tokenizer(passage, return_tensors="pt").input_ids
        plain += model(input_ids=ids, labels=ids).loss.item() * (ids.shape[1] - 1)
        tokens += ids.shape[1] - 1
    return {"loss": total / count, "exact": right / len(rows), "perplexity": math.exp(plain / tokens)}


def fold(base: Path, adapter: Path, out: Path) -> None:
    """By this product's own merge: base + adapter in bfloat16."""
    body = {"merge_method": "task_arithmetic", "base_model": str(base), "dtype": "bfloat16",
            "models": [{"model": f"{base}+{adapter}", "parameters": {"weight": 1.0}}]}  # fmt: skip
    recipe = out.with_suffix(".yml")
    recipe.write_text(json.dumps(body), encoding="utf-8")
    subprocess.run([sys.executable, "-m", "mcp_server.cli", "merge", str(recipe), str(out), "--overwrite"], check=True, cwd=ROOT)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--task", choices=DATA, default="tools")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--lr", type=float, default=4e-4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    started, work = time.process_time(), given.work
    train_file, dev_file = DATA[given.task]
    work.mkdir(parents=True, exist_ok=True)
    copy, adapter = work / "base-bnb-4bit", work / f"{given.task}-{given.seed}"
    if not copy.exists():
        pack(given.base, copy)
    losses = train(given.base, adapter, train_file, given) if not (adapter / "adapter_model.safetensors").exists() else []
    texts = Texts(given.base)
    rows = [texts.row(entry) for entry in read(dev_file)]
    passages = (SUITES / "perplexity" / "dev.txt").read_text(encoding="utf-8").strip().split("\n\n")
    found: dict[str, dict[str, float]] = {}
    for label, base in (("16-bit base", given.base), ("4-bit base", copy)):
        folded = work / f"on-{base.name}-{given.seed}"
        fold(base, adapter, folded)
        plain = (
            AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32) if base == given.base else unpacked(base=given.base)
        )
        found[label] = measured(plain, texts, rows, passages)
        del plain
        merged = AutoModelForCausalLM.from_pretrained(folded, dtype=torch.float32)
        found[f"adapter on the {label}"] = measured(merged, texts, rows, passages)
    trained = PeftModel.from_pretrained(unpacked(given.base), adapter).base_model.model
    found["as trained (4-bit base, adapter running)"] = measured(trained, texts, rows, passages)
    settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(given).items()}
    result = {"settings": settings, "losses": losses, "cpu_seconds": round(time.process_time() - started), "measured": found}
    (work / f"measured-{given.task}-{given.seed}.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
