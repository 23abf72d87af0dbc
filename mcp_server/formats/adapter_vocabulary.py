"""What an adapter does to the vocabulary of its base: more rows, and a head that no longer is the embedding."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mcp_server.errors import Incompatible, Unsupported
from mcp_server.formats.memory_names import Shaped
from mcp_server.formats.recipe import KEEPS_TIES
from mcp_server.formats.tensor_names import vocabulary_tensor
from mcp_server.formats.ties import Ties
from mcp_server.formats.updates import Change, LowRank, Rows


def check_rows(ref: str, changes: dict[str, Change], shapes: Mapping[str, Shaped], ties: Ties | None) -> int | None:
    """Replacements have the base's shape; a vocabulary may have grown. Returns its new size."""
    grown: dict[str, int] = {}
    for name, change in changes.items():
        new, old = change.replacement, tuple(shapes[name].shape)
        if new is not None and new.shape != old:
            if len(old) != 2 or new.shape[1:] != old[1:] or new.shape[0] < old[0] or not _vocabulary(name, ties):
                raise Incompatible(
                    f"{name} is {list(new.shape)} in {ref}, {list(old)} in the base",
                    "merge it on a base of that size: resize_token_embeddings() on the base, then save it",
                )
            grown[name] = new.shape[0]
        rows = next(iter(old if new is None else new.shape), 0)  # a scalar has none
        for update in change.updates:
            if isinstance(update, Rows) and max(update.indices, default=0) >= rows:
                raise Incompatible(
                    f"{ref} trains token {max(update.indices)}, {name} has {rows} rows",
                    "merge it on the resized base: resize_token_embeddings() on the base, then save it",
                )
    if not grown:
        return None
    pair = [name for name in ((ties.head, ties.embedding) if ties else ()) if name in shapes]
    if len(set(grown.values())) != 1 or any(name not in grown for name in pair if not (ties and ties.tied)):
        sizes = ", ".join(f"{name} {rows}" for name, rows in grown.items())
        kept = ", ".join(f"{name} {shapes[name].shape[0]}" for name in pair if name not in grown)
        raise Incompatible(
            f"{ref} resizes only a part of the vocabulary ({sizes}{'; unchanged: ' + kept if kept else ''} rows)",
            "save embedding and head together: save_pretrained(..., save_embedding_layers=True)",
        )
    return next(iter(grown.values()))


def _vocabulary(name: str, ties: Ties | None) -> bool:
    return vocabulary_tensor(name) or (ties is not None and name in (ties.head, ties.embedding))


def untie(
    ref: str,
    own: dict[str, Any],
    changes: dict[str, Change],
    base: Mapping[str, Shaped],
    ties: Ties | None,
    notes: list[str],
    *,
    as_merged: set[str] | None = None,
) -> tuple[dict[str, str], bool]:
    """PEFT adapts one of the names of a tied tensor and leaves the others: the model as it runs then needs both.

    Returns what has to be stored that the base does not store, name → the base's tensor that it starts from, and whether the
    result is untied. `as_merged` asks for what PEFT's merge_and_unload makes, where a LoRA of a tied tensor changes all of it;
    it names the tensors that the adapter holds whole only as copies of the base's.
    """
    if ties is None or not ties.tied:
        return {}, False
    apart: dict[str, list[str]] = {}
    for holder, others in ties.groups().items():
        touched = [name for name in (holder, *others) if name in changes]
        if not touched:
            continue
        kept = _shared(own, changes, touched)
        if kept is None and as_merged is not None:
            kept = _merged(ref, changes, touched, as_merged)
        if kept is None:
            apart[holder] = others
            continue
        for name in (holder, *others):
            changes.pop(name, None)
            if name == holder or name in base:
                changes[name] = kept
        if as_merged is not None and holder == ties.embedding and not _only_rows(kept):
            notes.append(f"{ref} changes embedding and head of its base alike, as PEFT's merge_and_unload does ({KEEPS_TIES})")
    if not apart:
        return {}, False
    sides = [side for side, name in (("embedding", ties.embedding), ("head", ties.head)) if name in changes]
    if sides:
        stored = "transformers loads both as they are stored" if ties.keeps_flag else "tie_word_embeddings is false"
        merged = (
            ""
            if changes[ties.head if ties.head in changes else ties.embedding].replacement
            else (f"; PEFT's merge_and_unload changes both instead: parameters: {{{KEEPS_TIES}: true}} asks for that")
        )
        notes.append(
            f"{ref} changes the {' and the '.join(sides)}{', each by itself,' if len(sides) > 1 else ''} of a base whose head is "
            f"tied to its embedding; the result is untied, as the adapter was trained ({ties.head} is stored, {stored}){merged}"
        )
    if ties.keeps_flag:  # what is not stored still follows, so only what would follow a changed tensor has to be
        names = [name for holder, others in apart.items() for name in others if holder in changes or name in changes]
    else:
        names = list(ties.holders)
    return {name: ties.holders[name] for name in names if name not in base}, True


def _shared(own: dict[str, Any], changes: dict[str, Change], touched: list[str]) -> Change | None:
    """The change of a tied tensor whose names stayed one while it was trained; None when they did not."""
    first = changes[touched[0]]
    if own.get("ensure_weight_tying") or (len(touched) == 1 and _only_rows(first)):
        return first
    trained_bias = str(own.get("bias") or "none") != "none" and all(name.endswith("bias") for name in touched)
    heads = [changes.get(f"{name.removesuffix('bias')}weight") for name in touched]
    return first if trained_bias and not any(head and head.replacement for head in heads) else None


def _merged(ref: str, changes: dict[str, Change], touched: list[str], copies: set[str]) -> Change | None:
    """All updates of a tied tensor one after the other; None for tensors that the adapter holds whole, which PEFT unties too."""
    every = [changes[name] for name in touched]
    if any(changes[name].replacement and name not in copies for name in touched):
        return None
    updates = tuple(update for change in every for update in change.updates)
    if len(every) > 1 and any(not isinstance(update, LowRank) or update.magnitude for update in updates):
        raise Unsupported(
            f"{ref} changes {' and '.join(touched)}, which are one tensor, in ways that cannot be added up",
            f"leave out {KEEPS_TIES}: the result is then untied, as the adapter runs",
        )
    return Change(next((change.replacement for change in every if change.replacement), None), updates)


def _only_rows(change: Change) -> bool:
    return change.replacement is None and all(isinstance(update, Rows) for update in change.updates)
