"""Adds what the base itself says: data/replay.jsonl, and data/tools_both.jsonl with calls that come after words of the base.

    python examples/one_prompt/make_replay.py BASE

Greedy, at most 24 tokens a reply: which role answers is decided in the first ones. Some minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import sys
from pathlib import Path

from make_rows import HERE, SEED, jsonl, prompts, tools_rows, words

sys.path.insert(0, str(HERE.parent / "train_adapter"))
os.environ["HF_HUB_OFFLINE"] = "1"
import torch
from generating import replies
from packing import Texts
from transformers import AutoModelForCausalLM, AutoTokenizer

TOKENS = 24


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path, help="folder of the base model")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    given = parser.parse_args()
    base = given.base
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).to(given.device)
    rows = prompts()
    asked = [row | {"system": words()["system"]} for row in rows]
    said = replies(model, Texts(AutoTokenizer.from_pretrained(base), given.device), asked, TOKENS)
    replay = [row | {"reply": text, "end": ""} for row, text in zip(rows, said, strict=True)]
    (HERE / "data" / "replay.jsonl").write_text(jsonl(replay), encoding="utf-8")
    openings = [re.split(r"(?<=[.!?])\s", row["reply"])[0].strip() + "\n" for row in replay if row["kind"] in ("both", "chat")]
    rng = random.Random(SEED + 3)
    both = [row | {"said": rng.choice(openings)} for row in tools_rows()[1]]
    (HERE / "data" / "tools_both.jsonl").write_text(jsonl(both), encoding="utf-8")
    print(json.dumps({"replay": len(replay), "tools_both": len(both)}))


if __name__ == "__main__":
    main()
