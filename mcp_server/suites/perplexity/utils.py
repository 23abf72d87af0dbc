"""Plain text, one passage a document: the shipped one, or a file of the user's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

PASSAGE_CHARACTERS = 1500
"""Paragraphs of a user's file are joined to about this: long enough to be language, short enough for several in a file."""


def load(split: str, file: str | None = None, **_: Any) -> dict[str, Any]:
    """lm-eval's `custom_dataset`: the passages of `<split>.txt`, which blank lines separate, or those of `file`: every third
    for dev, the others for test, all where the split is `whole` or there are fewer than three. Rows have id and text."""
    from datasets import Dataset

    if file is None:
        passages = (Path(__file__).parent / f"{split}.txt").read_text(encoding="utf-8").strip().split("\n\n")
    else:
        found = joined(Path(file).read_text(encoding="utf-8"))
        passages = [p for i, p in enumerate(found) if split == "whole" or len(found) < 3 or (i % 3 == 1) == (split == "dev")]
    return {"test": Dataset.from_list([{"id": f"text-{split}-{i:02d}", "text": text} for i, text in enumerate(passages, 1)])}


def joined(text: str) -> list[str]:
    """Paragraphs, joined until a passage is long enough."""
    passages: list[str] = []
    for paragraph in (part.strip() for part in text.replace("\r\n", "\n").split("\n\n")):
        if not paragraph:
            continue
        if passages and len(passages[-1]) < PASSAGE_CHARACTERS:
            passages[-1] += f"\n\n{paragraph}"
        else:
            passages.append(paragraph)
    return passages
