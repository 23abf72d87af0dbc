"""Writes data/replay.jsonl: text outside an adapter's own context, which training asks it to leave as the base has it.

    python examples/taskmaster/make_replay.py BASE

Four kinds: `chat` (general prompts, the base's greedy answers), `coach` (TaskMaster's system prompt, general and coaching
prompts, the base's greedy answers), `api` (the Task API's system prompt, requests drawn with another seed, the base's greedy
answers), `text` (the base's own samples of plain prose). Only train wording is used. About four minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import random
from pathlib import Path
from typing import Any

from make_data import HERE, Chats, ToolRequests, jsonl, wording

os.environ["HF_HUB_OFFLINE"] = "1"
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

REPLY_TOKENS = 48
TEXT_TOKENS = 112
SEED = 2


def prompts(rng: random.Random) -> list[dict[str, Any]]:
    chat = wording("chat")
    coach = wording("persona")["system"]
    asks = list(Chats("train", SEED).rows(60))
    rows = [{"kind": "chat", "system": rng.choice(chat["systems"]), "user": user} for user in chat["replay"]]
    rows += [{"kind": "coach", "system": coach, "user": user} for user in chat["replay"][::3]]
    rows += [{"kind": "coach", "system": coach, "user": row["user"]} for row in asks[:50]]
    rows += [{"kind": "api", "system": row["system"], "user": row["user"]} for row in ToolRequests("train", SEED).rows(120)]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path, help="folder of the base model")
    base = parser.parse_args().base
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    tokenizer = AutoTokenizer.from_pretrained(base, padding_side="left")
    rows = prompts(random.Random(SEED))
    texts = [tokenizer.apply_chat_template(messages(row), add_generation_prompt=True, tokenize=False) for row in rows]
    replies = generate(model, tokenizer, texts, REPLY_TOKENS, sample=False)
    rows = [row | {"reply": reply} for row, reply in zip(rows, replies, strict=True)]
    openings = wording("chat")["openings"] * 2
    torch.manual_seed(SEED)
    samples = generate(model, tokenizer, openings, TEXT_TOKENS, sample=True)
    rows += [{"kind": "text", "reply": start + more} for start, more in zip(openings, samples, strict=True)]
    (HERE / "data" / "replay.jsonl").write_text(jsonl(rows), encoding="utf-8")
    print(json.dumps({"rows": len(rows)}))


def messages(row: dict[str, Any]) -> list[dict[str, str]]:
    system = [{"role": "system", "content": row["system"]}] if row["system"] else []
    return [*system, {"role": "user", "content": row["user"]}]


def generate(model: Any, tokenizer: Any, texts: list[str], tokens: int, *, sample: bool) -> list[str]:
    """Continue each text; batches hold texts of similar length, the order is kept."""
    out = [""] * len(texts)
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    for at in range(0, len(order), 48):
        chunk = order[at : at + 48]
        batch = tokenizer([texts[i] for i in chunk], return_tensors="pt", padding=True, add_special_tokens=False)
        with torch.inference_mode():
            ids = model.generate(**batch, max_new_tokens=tokens, do_sample=sample, **({"top_k": 0} if sample else {}))
        for i, reply in zip(chunk, ids[:, batch["input_ids"].shape[1] :], strict=True):
            out[i] = tokenizer.decode(reply, skip_special_tokens=True)
        print(f"{min(at + 48, len(order))}/{len(order)}", flush=True)
    return out


if __name__ == "__main__":
    main()
