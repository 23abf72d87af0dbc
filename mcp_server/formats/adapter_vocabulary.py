"""What an adapter does to the vocabulary of its base: more rows, and a head that no longer is the embedding."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mcp_server.errors import Incompatible
from mcp_server.formats.memory_names import Shaped
from mcp_server.formats.tensor_names import vocabulary_tensor
from mcp_server.formats.ties import Tie
from mcp_server.formats.updates import Change, Rows


def check_rows(ref: str, changes: dict[str, Change], shapes: Mapping[str, Shaped], tie: Tie | None) -> int | None:
    """Replacements have the base's shape; a vocabulary may have grown. Returns its new size."""
    grown: dict[str, int] = {}
    for name, change in changes.items():
        new, old = change.replacement, tuple(shapes[name].shape)
        if new is not None and new.shape != old:
            if len(old) != 2 or new.shape[1:] != old[1:] or new.shape[0] < old[0] or not _vocabulary(name, tie):
                raise Incompatible(
                    f"{name} is {list(new.shape)} in {ref}, {list(old)} in the base",
                    "merge it on a base of that size: resize_token_embeddings() on the base, then save it",
                )
            grown[name] = new.shape[0]
        rows = new.shape[0] if new is not None else (old[0] if old else 0)
        for update in change.updates:
            if isinstance(update, Rows) and max(update.indices, default=0) >= rows:
                raise Incompatible(
                    f"{ref} trains token {max(update.indices)}, {name} has {rows} rows",
                    "merge it on the resized base: resize_token_embeddings() on the base, then save it",
                )
    if not grown:
        return None
    pair = [name for name in ((tie.head, tie.embedding) if tie else ()) if name in shapes]
    if len(set(grown.values())) != 1 or any(name not in grown for name in pair if not (tie and tie.tied)):
        sizes = ", ".join(f"{name} {rows}" for name, rows in grown.items())
        kept = ", ".join(f"{name} {shapes[name].shape[0]}" for name in pair if name not in grown)
        raise Incompatible(
            f"{ref} resizes only a part of the vocabulary ({sizes}{'; unchanged: ' + kept if kept else ''} rows)",
            "save embedding and head together: save_pretrained(..., save_embedding_layers=True)",
        )
    return next(iter(grown.values()))


def _vocabulary(name: str, tie: Tie | None) -> bool:
    return vocabulary_tensor(name) or (tie is not None and name in (tie.head, tie.embedding))


def untie(
    ref: str, own: dict[str, Any], changes: dict[str, Change], base: Mapping[str, Shaped], tie: Tie | None, notes: list[str]
) -> tuple[dict[str, str], bool]:
    """PEFT adapts one side of a tied pair and leaves the other: the merged model then needs both."""
    if tie is None or not tie.tied or not ({tie.head, tie.embedding} & set(changes)):
        return {}, False
    embedding, head = changes.get(tie.embedding), changes.get(tie.head)
    follows = bool(own.get("ensure_weight_tying")) or all(
        isinstance(update, Rows) for change in (embedding, head) if change for update in change.updates
    )
    if follows and (embedding is None or head is None or own.get("ensure_weight_tying")) and _only_rows(embedding, head, own):
        kept = embedding or head
        assert kept is not None
        changes[tie.embedding] = kept
        if tie.head in base:
            changes[tie.head] = kept
        else:
            changes.pop(tie.head, None)
        return {}, False
    side = "embedding" if head is None else "head" if embedding is None else "head and embedding, each by itself"
    notes.append(
        f"{ref} changes the {side} of a base whose head is tied to its embedding; the result is untied, as the adapter was "
        f"trained ({tie.head} is stored, tie_word_embeddings is false). PEFT's merge_and_unload of a LoRA would change both"
    )
    return ({} if tie.head in base else {tie.head: tie.embedding}), True


def _only_rows(embedding: Change | None, head: Change | None, own: dict[str, Any]) -> bool:
    changes = [change for change in (embedding, head) if change]
    return bool(own.get("ensure_weight_tying")) or all(change.replacement is None for change in changes)
