"""Writes what the base itself says to prompts, as replay for train_adapter.py.

    python examples/train_adapter/make_base_replies.py BASE prompts.jsonl replay.jsonl --system "You are …" --tokens 24

Prompts are rows with `user`, and `system` where it differs. Replies are greedy and cut after `--tokens`, which is enough: who
answers is decided in the first words.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
import torch
from generating import replies
from packing import Texts
from transformers import AutoModelForCausalLM, AutoTokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path, help="folder of the base model")
    parser.add_argument("prompts", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--system", default="", help="system prompt of rows that name none")
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    rows = [json.loads(line) for line in given.prompts.read_text(encoding="utf-8").splitlines() if line.strip()]
    model = AutoModelForCausalLM.from_pretrained(given.base, dtype=torch.float32)
    asked = [{"system": given.system} | row for row in rows]
    said = replies(model, Texts(AutoTokenizer.from_pretrained(given.base)), asked, given.tokens)
    made = [row | {"reply": text, "end": ""} for row, text in zip(asked, said, strict=True)]
    given.out.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in made), encoding="utf-8")


if __name__ == "__main__":
    main()
