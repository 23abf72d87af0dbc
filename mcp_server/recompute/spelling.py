"""Names that say the same: a model's own and what training tools put around them, on disk and in memory."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

_WRAPPERS: Final = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module", "base_layer"})


def plain(key: str) -> str:
    """A stored key without what PEFT and training wrappers put around the model's own names."""
    name = key.removeprefix("base_model.model.").removeprefix("base_model.")
    return ".".join(word for word in name.split(".") if word not in _WRAPPERS)


def nearest(name: str, names: Iterable[str]) -> str | None:
    """The one name that says the same: itself, or the only one that shares the longest ending and most words before it."""
    if name in names:
        return name
    words = name.split(".")
    rated: dict[tuple[int, int], list[str]] = {}
    for other in names:
        theirs = other.split(".")
        if theirs[-1] != words[-1]:
            continue
        tail = _common(words, theirs)
        if tail >= min(len(words), len(theirs), 3) or (tail == 2 and _same_embedding(words, theirs)):
            before = len(set(words[:-tail]) & set(theirs[:-tail])) - len(set(words[:-tail]) ^ set(theirs[:-tail]))
            rated.setdefault((tail, before), []).append(other)
    best = rated[max(rated)] if rated else []
    return best[0] if len(best) == 1 else None


def _same_embedding(one: list[str], other: list[str]) -> bool:
    """Whether two names of embeddings differ only in where, or whether, they name the parts of the model around it."""
    return "embed" in one[-2] and (set(one) <= set(other) or set(other) <= set(one))


def _common(one: list[str], other: list[str]) -> int:
    count = 0
    for a, b in zip(reversed(one), reversed(other), strict=False):
        if a != b:
            break
        count += 1
    return count
