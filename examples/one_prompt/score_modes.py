"""Scores models under the one system prompt: does an action get its call, a chat the voice, and each prompt the right role?

    python examples/one_prompt/score_modes.py BASE merged=OUT/merged tools=examples/one_prompt/tools --split test

A path is a whole model or an adapter on BASE; `NAME=base` is BASE itself. Documents are drawn as the shipped suites, under
the one system prompt; of the test split more of them (200 requests, 200 chats, 210 mixed prompts). Greedy decoding, in float32
unless `--dtype` says otherwise.
`tools` is one forward pass over the targets: greedy decoding writes one exactly when each of its tokens is the most likely one
after those before it (another spelling of the same call counts as wrong). `persona` and `mode` are generated.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import random
import sys
import time
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

from make_rows import words

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "train_adapter"))
os.environ["HF_HUB_OFFLINE"] = "1"
import torch
from generating import replies
from make_data import Chats, ToolRequests, mixed_rows
from packing import Pack, Row, Texts
from peft import PeftModel
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

SUITES = Path(__file__).resolve().parents[2] / "mcp_server" / "suites"
COUNTS = {"task_api_tools": 200, "taskmaster_persona": 200, "taskmaster_mixed": 210}
"""Documents of the test split."""
TOKENS = 72


def utils(suite: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"{suite}_utils", SUITES / suite / "utils.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def documents(suite: str, split: str, limit: int | None) -> list[Row]:
    """Rows of a suite; where the shipped one is smaller than `COUNTS` says, more by the same generator and seed."""
    if split == "dev":
        rows = [json.loads(line) for line in (SUITES / suite / "dev.jsonl").read_text(encoding="utf-8").splitlines()]
    elif suite == "taskmaster_mixed":
        rows = mixed_rows(split, COUNTS[suite] // 3, 3)
    else:
        rows = list((ToolRequests if suite == "task_api_tools" else Chats)(split, 1).rows(COUNTS[suite]))
    return [row | {"system": words()["system"]} for row in rows][:limit]


def load(base: Path, path: str, device: str = "cpu", dtype: str = "float32") -> Any:
    """An adapter is folded in float32 and rounded once, whatever the model then computes in."""
    folder = base if path == "base" else Path(path)
    options: dict[str, Any] = {"dtype": torch.float32, "attn_implementation": "packed"}
    narrow = getattr(torch, dtype)
    if (folder / "adapter_config.json").is_file():
        adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, **options), folder)
        return adapted.merge_and_unload().to(device, narrow)
    return AutoModelForCausalLM.from_pretrained(folder, **options).to(device, narrow)


def hidden(model: Any, batch: Pack) -> Any:
    """Final states of the positions that count: (rows, width)."""
    out = model.model(input_ids=batch.ids, position_ids=batch.positions, use_cache=False, bounds=batch.bounds)
    return out.last_hidden_state[0, batch.rows]


@torch.inference_mode()
def exact(model: Any, texts: Texts, rows: list[Row]) -> list[bool]:
    """Whether greedy decoding writes each row's reply token by token."""
    found: list[bool] = []
    for batch in texts.packs(rows, 20):
        states = hidden(model, batch)
        hits = model.lm_head(states).argmax(-1) == batch.targets
        found += [bool(part.all()) for part in hits.split(batch.counts)]
    return found


@torch.inference_mode()
def perplexity(model: Any, texts: Texts, split: str) -> float:
    """Per token of the shipped passages, each from its second token on."""
    total, count = 0.0, 0
    for text in (SUITES / "perplexity" / f"{split}.txt").read_text(encoding="utf-8").strip().split("\n\n"):
        (batch,) = texts.packs([{"kind": "text", "reply": text, "end": ""}], 1)
        states = hidden(model, batch)
        total += F.cross_entropy(model.lm_head(states).float(), batch.targets, reduction="sum").item()
        count += len(batch.targets)
    return float(torch.tensor(total / count).exp())


def asked(rows: list[Row]) -> list[Row]:
    return [{"system": row["system"], "user": row["user"]} for row in rows]


def share(values: list[Any]) -> float:
    return round(sum(map(float, values)) / len(values), 3)


def measure(model: Any, texts: Texts, parts: list[str], split: str, limit: int | None, show: int) -> dict[str, Any]:
    started, out = time.monotonic(), {}
    if "tools" in parts:
        rows = documents("task_api_tools", split, limit)
        found = exact(model, texts, rows)
        out["tools"], out["tools_n"] = share(found), len(rows)
        shown(show, [(row["user"], row["reply"]) for row, good in zip(rows, found, strict=True) if not good])
    if "persona" in parts:
        coach, rows = utils("taskmaster_persona"), documents("taskmaster_persona", split, limit)
        said = [text.split("\n\n")[0] for text in replies(model, texts, asked(rows), TOKENS)]
        out["persona"], out["persona_n"] = share([sum(coach.markers(text).values()) / 4 for text in said]), len(rows)
        shown(show, [(row["user"], text) for row, text in zip(rows, said, strict=True)])
    if "mode" in parts:
        mixed, rows = utils("taskmaster_mixed"), documents("taskmaster_mixed", split, limit)
        said = replies(model, texts, asked(rows), TOKENS)
        scored = [mixed.score(row, [text]) for row, text in zip(rows, said, strict=True)]
        out["right_mode"], out["mode_n"] = share([s["right_mode"] for s in scored]), len(rows)
        out["modes"] = dict(sorted(Counter(f"{s['expected']} > {s['chosen']}" for s in scored).items()))
        calls = [s["exact_call"] for s in scored if s["exact_call"] >= 0]
        out["exact_call"] = share(calls) if calls else None
        order = random.Random(1).sample(range(len(rows)), len(rows))
        shown(show, [(rows[i]["mode"], rows[i]["user"], said[i]) for i in order])
    if "text" in parts:
        out["perplexity"] = round(perplexity(model, texts, split), 2)
    return out | {"seconds": round(time.monotonic() - started)}


def shown(count: int, items: list[tuple[str, ...]]) -> None:
    for item in items[:count]:
        print("   ", *item, sep=" | ")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path)
    parser.add_argument("models", nargs="+", help="name=folder")
    parser.add_argument("--split", default="dev", choices=("dev", "test"))
    parser.add_argument("--part", action="append", choices=("tools", "persona", "mode", "text"), help="default: all")
    parser.add_argument("--limit", type=int, help="at most so many documents of each suite")
    parser.add_argument("--show", type=int, default=0, help="print that many wrong calls and replies")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--dtype", default="float32", help="bfloat16: several times as fast where the processor multiplies it")
    given = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    texts = Texts(AutoTokenizer.from_pretrained(given.base), given.device)
    for name, path in (item.split("=", 1) for item in given.models):
        parts = given.part or ["tools", "persona", "mode", "text"]
        found = measure(load(given.base, path, given.device, given.dtype), texts, parts, given.split, given.limit, given.show)
        print(json.dumps({"model": name, "split": given.split, **found}), flush=True)


if __name__ == "__main__":
    main()
