"""The shipped plain text, one passage a document."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def load(split: str, **_: Any) -> dict[str, Any]:
    """lm-eval's `custom_dataset`: the passages of `<split>.txt`, which blank lines separate. Rows have id and text."""
    from datasets import Dataset

    passages = (Path(__file__).parent / f"{split}.txt").read_text(encoding="utf-8").strip().split("\n\n")
    return {"test": Dataset.from_list([{"id": f"text-{split}-{i:02d}", "text": text} for i, text in enumerate(passages, 1)])}
