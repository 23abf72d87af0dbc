"""Which tensor is a model's output head, which its input embedding, and whether one is the other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mcp_server.formats.memory_names import Shaped, facts_of, in_memory
from mcp_server.formats.tensor_names import EMBEDDINGS, HEADS, is_word_embedding
from mcp_server.formats.tied import tied


@dataclass(frozen=True, slots=True)
class Tie:
    """Stored names of head and embedding; the head's may be one that is not stored yet."""

    head: str
    embedding: str
    tied: bool


def find_tie(config: Mapping[str, Any], tensors: Mapping[str, Shaped]) -> Tie | None:
    """The head and the embedding of a model, None when they cannot be told.

    By the class's own list of tied weights; by the usual names where the class is not known. They are tied when the config says
    so, or when the head is not stored and the config does not deny it.
    """
    facts, memory = facts_of(config), in_memory(config, tensors)
    if facts.known and not facts.tied:
        return None
    pairs = facts.tied or tuple((head, embedding) for head in HEADS for embedding in EMBEDDINGS)
    for head, embedding in pairs:
        held = memory.get(embedding)
        name = held.pieces[0].name if held else next((n for n in tensors if embedding.endswith(f".{n}")), None)
        if name is None or not is_word_embedding(name):
            continue
        stored = memory[head].pieces[0].name if head in memory else _name_of(config, head, tensors[name])
        flag = tied(dict(config))
        return Tie(stored, name, flag is True or (flag is None and stored not in tensors))
    return None


def _name_of(config: Mapping[str, Any], head: str, tensor: Shaped) -> str:
    """The name under which a head has to be stored so that it is loaded as `head`."""
    for name in (head, f"language_model.{head}"):
        if head in in_memory(config, {name: tensor}):
            return name
    return head
