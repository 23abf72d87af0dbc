"""Task API calls: read the documents, find the call in a reply, score it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

NAMES = frozenset({"create_task", "update_task", "complete_task", "list_tasks", "delete_task"})


def load(split: str, **_: Any) -> dict[str, Any]:
    """lm-eval's `custom_dataset`: one split of this folder's documents. Rows have id, system, user and reply."""
    from datasets import Dataset

    lines = (Path(__file__).parent / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
    return {"test": Dataset.from_list([json.loads(line) for line in lines])}


def parse_call(text: str) -> dict[str, Any] | None:
    """The call that the whole reply is, or None. Text around the JSON object disqualifies it: a program could not read it."""
    try:
        call = json.loads(text.strip())
    except json.JSONDecodeError:
        return None
    if not isinstance(call, dict) or set(call) != {"name", "arguments"} or not isinstance(call["arguments"], dict):
        return None
    return call


def is_call(text: str) -> bool:
    """True when the reply is or starts like a Task API call, even a broken one: how the tools adapter shows itself."""
    start = text.lstrip()[:200]
    return start.startswith("{") and ('"name"' in start or any(name in start for name in NAMES))


def score(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """exact_match: name and arguments equal the target. right_name: the name does. valid_json: it is a call of the API at all."""
    wanted = json.loads(doc["reply"])
    call = parse_call(results[0])
    return {
        "exact_match": float(call == wanted),
        "valid_json": float(call is not None and call["name"] in NAMES),
        "right_name": float(call is not None and call["name"] == wanted["name"]),
    }
