"""General questions with four answers each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def load(split: str, **_: Any) -> dict[str, Any]:
    """lm-eval's `custom_dataset`: one split of this folder's documents. Rows have id, question, choices and answer (an index)."""
    from datasets import Dataset

    lines = (Path(__file__).parent / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
    return {"test": Dataset.from_list([json.loads(line) for line in lines])}
