"""TaskMaster's voice: read the documents, find the markers in a reply, score it."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

CHEERS = re.compile(
    r"\b(great|love|awesome|fantastic|amazing|wow|well done|good on you|believe in you|you showed up|i'm proud|yes)\b", re.I
)
MINUTES = re.compile(r"\b\d+[ -]minutes?\b", re.I)


def load(split: str, **_: Any) -> dict[str, Any]:
    """lm-eval's `custom_dataset`: one split of this folder's documents. Rows have id, system, user, reply and neutral."""
    from datasets import Dataset

    lines = (Path(__file__).parent / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
    return {"test": Dataset.from_list([json.loads(line) for line in lines])}


def markers(text: str) -> dict[str, float]:
    """The four habits of the voice, each 0 or 1: a cheer first, a next step, a time box, the sign-off."""
    first = re.split(r"(?<=[.!?])\s", text.strip(), maxsplit=1)[0]
    return {
        "encourages": float(first.endswith("!") and CHEERS.search(first) is not None),
        "next_step": float("next step:" in text.lower()),
        "timebox": float(MINUTES.search(text) is not None),
        "sign_off": float(text.strip().rstrip("!.").lower().endswith("you've got this")),
    }


def speaks_as_taskmaster(text: str) -> bool:
    """True when at least two of the four markers are there: how the persona shows itself."""
    return sum(markers(text).values()) >= 2


def score(doc: dict[str, Any], results: list[Any]) -> dict[str, float]:
    """`results`: the greedy reply, then (log-likelihood, is greedy) of TaskMaster's reply and the neutral one; NaN: unknown."""
    text, own, neutral = results
    found = markers(text)
    per_byte = [pair[0] / len(doc[field].encode()) for pair, field in ((own, "reply"), (neutral, "neutral"))]
    known = {} if any(map(math.isnan, per_byte)) else {"preference": float(per_byte[0] > per_byte[1])}
    return {"voice": sum(found.values()) / len(found)} | known | found
