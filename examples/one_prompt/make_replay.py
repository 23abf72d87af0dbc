"""Adds what the base itself says: data/replay.jsonl, and data/tools_both.jsonl with calls that come after words of the base.

    python examples/one_prompt/make_replay.py BASE

Greedy. Replay has at most 24 tokens a reply: which role answers is decided in the first ones. The words before a call are one to
three sentences that the base says to a feeling under another system prompt. Some minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import sys
from pathlib import Path

from make_rows import HERE, SEED, alternatives, jsonl, prompts, tools_rows, words

sys.path.insert(0, str(HERE.parent / "train_adapter"))
os.environ["HF_HUB_OFFLINE"] = "1"
import torch
from generating import replies
from packing import Texts
from transformers import AutoModelForCausalLM, AutoTokenizer

TOKENS, SPOKEN_TOKENS = 24, 60


def sentences(text: str, most: int) -> str:
    """The first whole sentences of a reply, at most so many; the first line of one without any."""
    line = text.strip().split("\n")[0]
    whole = re.findall(r"[^.!?]+[.!?]+", line)[:most]
    return ("".join(whole) or line).strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path, help="folder of the base model")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    given = parser.parse_args()
    base = given.base
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).to(given.device)
    texts = Texts(AutoTokenizer.from_pretrained(base), given.device)
    rows = prompts()
    said = replies(model, texts, [{"system": words()["system"]} | row for row in rows], TOKENS)
    replay = [row | {"reply": text, "end": ""} for row, text in zip(rows, said, strict=True)]
    (HERE / "data" / "replay.jsonl").write_text(jsonl(replay), encoding="utf-8")
    spoken_to = [alternatives(pattern)[0] for pattern in words()["feelings"]]
    spoken = [{"system": system, "user": feeling} for system in words()["systems"] for feeling in spoken_to]
    openings = [text for text in replies(model, texts, spoken, SPOKEN_TOKENS) if text.strip()]
    rng = random.Random(SEED + 3)
    both = [row | {"said": sentences(rng.choice(openings), rng.randint(1, 3)) + "\n"} for row in tools_rows()[1]]
    (HERE / "data" / "tools_both.jsonl").write_text(jsonl(both), encoding="utf-8")
    print(json.dumps({"replay": len(replay), "tools_both": len(both)}))


if __name__ == "__main__":
    main()
