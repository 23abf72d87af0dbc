"""Checks of the training script's parts on a two-layer Llama, as JSON on the last line: `python adapter_training.py FOLDER`.

A process of its own, because transformers and peft warn on import and tests turn warnings into errors.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / folder) for folder in ("examples/train_adapter", "examples/one_prompt", "tests/workers")]
import experiment  # noqa: E402
import tiny_language_model  # noqa: E402
import torch  # noqa: E402
from generating import replies  # noqa: E402
from packing import masked_attention, packed_attention  # noqa: E402
from peft import PeftModel  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from train_adapter import Adapter, train  # noqa: E402
from transformers import AutoModelForCausalLM  # noqa: E402

OWN = [{"user": f"do {word}", "reply": f"{{{word}}}"} for word in ("tea", "soup", "bread", "rice", "jam", "milk")]
FOREIGN = [{"user": f"why {word}?", "reply": "so it is", "end": ""} for word in ("rain", "snow", "wind", "sun", "fog", "ice")]
SETTINGS = {
    "system": "You help.", "data": ["own.jsonl"], "replay": ["foreign.jsonl"], "rank": 4, "alpha": 8, "first_layer": 1,
    "lr": 0.02, "steps": 40, "batch": 3, "replay_batch": 2, "held_out": 2, "check_every": 20, "scale_jitter": [0.8, 1.1],
}  # fmt: skip


def main(folder: Path) -> dict[str, Any]:
    base = folder / "base"
    tiny_language_model.model(0).save_pretrained(base)
    tiny_language_model.tokenizer().save_pretrained(base)
    for name, rows in (("own", OWN), ("foreign", FOREIGN)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (folder / "settings.json").write_text(json.dumps(SETTINGS), encoding="utf-8")
    found = packed_and_generated(base)
    train(base, folder / "settings.json", folder / "adapter", 1)
    (folder / "again.json").write_text(
        json.dumps(SETTINGS | {"start_from": "adapter", "steps": 2, "kl": False}), encoding="utf-8"
    )
    train(base, folder / "again.json", folder / "again", 1)
    (folder / "narrow.json").write_text(json.dumps(SETTINGS | {"dtype": "bfloat16"}), encoding="utf-8")
    train(base, folder / "narrow.json", folder / "narrow", 1)
    return found | trained(base, folder) | {"table": tabled(folder), "variants": varied()}


def packed_and_generated(base: Path) -> dict[str, Any]:
    """Packed logits against one plain forward pass an example, and greedy replies against transformers' own generate."""
    adapter = Adapter(base, {"start_from": None, "rank": 2, "alpha": 4, "first_layer": 0, "dtype": "float32"}, base)
    rows = [{"system": "You help."} | row for row in OWN + FOREIGN]
    (batch,) = adapter.texts.packs(rows, len(rows))
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    texts, worst, generated = adapter.texts, 0.0, []
    with torch.no_grad():
        for row, got in zip(rows, adapter.logits(batch).split(batch.counts), strict=True):
            asked = texts.encode(texts.chat(row))
            whole = asked + texts.encode(row["reply"] + row.get("end", "</s>"))
            alone = plain(torch.tensor([whole])).logits[0, len(asked) - 1 : -1]
            worst = max(worst, (alone - got).abs().max().item())
            ids = plain.generate(torch.tensor([asked]), max_new_tokens=9, do_sample=False)[0, len(asked) :]
            generated.append(texts.tokenizer.decode(ids, skip_special_tokens=True))
    own = replies(plain, texts, [{k: row[k] for k in ("system", "user")} for row in rows], 9)
    heads = [torch.randn(1, count, batch.ids.shape[1], 4) for count in (4, 2, 2)]
    parts, _ = packed_attention(torch.nn.Module(), *heads, None, bounds=batch.bounds)
    wide = [heads[0], *(x.repeat_interleave(2, 1) for x in heads[1:])]
    masked = (masked_attention(*wide, batch.bounds) - parts).abs().max().item()
    return {"worst": worst, "masked": masked, "replies": own, "generated": generated, "prefix": batch.bounds[0]}


def trained(base: Path, folder: Path) -> dict[str, Any]:
    tensors = load_file(folder / "adapter" / "adapter_model.safetensors")
    moved = {key.split("layers.")[1][0] for key, value in tensors.items() if "lora_B" in key and value.abs().max() > 0}
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), folder / "adapter")
    again = load_file(folder / "again" / "adapter_model.safetensors")
    return {
        "moved": sorted(moved), "dtypes": sorted({str(value.dtype) for value in tensors.values()}),
        "active": model.active_adapters, "curve": (folder / "adapter" / "loss.csv").read_text(encoding="utf-8"),
        "narrow": (folder / "narrow" / "loss.csv").read_text(encoding="utf-8"),
        "went_on": any(not torch.equal(again[key], tensors[key]) for key in tensors),
        "kept_below": all(torch.equal(again[key], tensors[key]) for key in tensors if "layers.0." in key),
    }  # fmt: skip


def tabled(folder: Path) -> str:
    """The experiment's table of made-up scores: two seeds of one variant, a variant that is half done, and the joint adapter."""
    whole = {"tools": 0.9, "persona": 1.0, "right_mode": 0.75, "perplexity": 22.0}
    pair = {"tools": {"tools": 0.96, "perplexity": 20.0}, "persona": {"persona": 0.8, "perplexity": 25.0}}
    files = {
        "base-dev.json": {"base": {"tools": 0.0, "persona": 0.2, "right_mode": 0.1, "perplexity": 40.0}},
        "full-1/scores-dev.json": pair | {"merged": whole | {"persona": 0.5}},
        "full-2/scores-dev.json": pair | {"merged": whole | {"tools": 0.8, "persona": 0.8, "perplexity": 30.0}},
        "without-KL-1/scores-dev.json": pair,
        "joint-1/scores-dev.json": {"merged": whole},
    }
    for name, scores in files.items():
        (folder / "out" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "out" / name).write_text(json.dumps(scores), encoding="utf-8")
    return experiment.table(folder / "out", "dev")


def varied() -> dict[str, list[str]]:
    """The settings that each variant changes against the full recipe, of the tools adapter."""
    full = experiment.settings("tools", "full", 1, None)
    changed: dict[str, list[str]] = {}
    for variant in experiment.VARIANTS:
        found = experiment.settings("tools", variant, 1, None)
        changed[variant] = sorted(key for key, value in found.items() if full.get(key) != value)
    return changed


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]))))
