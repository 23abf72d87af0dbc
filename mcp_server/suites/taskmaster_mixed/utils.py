"""Mixed requests under one system prompt: which mode did the reply choose?"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

CALL = re.compile(r'\{\s*"name"\s*:\s*"\w+"\s*,\s*"arguments"\s*:\s*\{[^{}]*\}\s*\}')
CHEERS = re.compile(r"\b(great|love|awesome|fantastic|amazing|wow|well done|good on you|believe in you)\b[^.?]*!", re.I)
VOICE = (CHEERS, re.compile(r"next step:", re.I), re.compile(r"\b\d+[ -]minutes?\b", re.I), re.compile(r"you've got this", re.I))


def load(split: str, **_: Any) -> dict[str, Any]:
    """lm-eval's `custom_dataset`: one split of this folder's documents: id, system, user, mode and call (JSON or '')."""
    from datasets import Dataset

    lines = (Path(__file__).parent / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
    return {"test": Dataset.from_list([json.loads(line) for line in lines])}


def find_call(text: str) -> dict[str, Any] | None:
    """The first complete call anywhere in the reply, or None."""
    for found in CALL.finditer(text):
        try:
            call: dict[str, Any] = json.loads(found.group())
        except json.JSONDecodeError:
            continue
        return call
    return None


def chosen_mode(text: str) -> str:
    """chat: at least two marks of the voice and no call. action: a call and no such voice. both. neither."""
    called = find_call(text) is not None
    voiced = sum(mark.search(text) is not None for mark in VOICE) >= 2
    return {(True, True): "both", (True, False): "action", (False, True): "chat", (False, False): "neither"}[called, voiced]


def score(doc: dict[str, Any], results: list[str]) -> dict[str, Any]:
    """right_mode, the pair for the confusion table, and exact_call (-1 where no call was wanted)."""
    mode = chosen_mode(results[0])
    wanted = json.loads(doc["call"]) if doc["call"] else None
    return {
        "right_mode": float(mode == doc["mode"]),
        "exact_call": float(find_call(results[0]) == wanted) if wanted else -1.0,
        "expected": doc["mode"],
        "chosen": mode,
    }


def mean_of_known(values: list[float]) -> float:
    known = [value for value in values if value >= 0]
    return sum(known) / len(known) if known else 0.0


def no_figure(values: list[str]) -> float:
    """Labels have no average; their table is made from the samples."""
    return float(len(values))
