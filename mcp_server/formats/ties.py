"""Which tensors a model keeps as one: its output head and its input embedding, and what else its class ties."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mcp_server.formats.class_facts import facts_of
from mcp_server.formats.memory_names import Shaped, in_memory
from mcp_server.formats.tensor_names import EMBEDDINGS, HEADS, is_head, is_word_embedding
from mcp_server.formats.tied import keeps_flag, tied


@dataclass(frozen=True, slots=True)
class Ties:
    """What a class may tie, by stored names; a name that is not stored is the one that it would be stored under.

    `holders` maps each tied name to the stored tensor that stands for it: a head to the embedding, a decoder's bias to the
    head's. `tied` says whether this model does tie them, `keeps_flag` whether its class needs the flag as it is.
    """

    holders: dict[str, str]
    head: str
    embedding: str
    tied: bool
    keeps_flag: bool = False

    def groups(self) -> dict[str, list[str]]:
        """Holder → the other names of it."""
        found: dict[str, list[str]] = {}
        for name, holder in self.holders.items():
            found.setdefault(holder, []).append(name)
        return found


def find_ties(config: Mapping[str, Any], tensors: Mapping[str, Shaped]) -> Ties | None:
    """None when a model has no head and embedding, or they cannot be told.

    By the class's own list of tied weights; by the usual names where the class is not known. They are tied when the config says
    so, or when the head is not stored and the config does not deny it.
    """
    facts, memory = facts_of(config), in_memory(config, tensors)
    if facts.known and not facts.tied:
        return None
    pairs = facts.tied or tuple((head, embedding) for head in HEADS for embedding in EMBEDDINGS if embedding in memory)
    members: dict[str, list[str]] = {}
    for name, source in pairs:
        members.setdefault(source, [source]).append(name)
    holders: dict[str, str] = {}
    for names in members.values():
        stored = {name: memory[name].pieces[0].name if name in memory else None for name in names}
        holder = next((found for found in stored.values() if found is not None), None)
        if holder is None:
            continue
        every = [found or _name_of(config, name, tensors[holder]) for name, found in stored.items()]
        holders |= {name: holder for name in every if name != holder}
    weights = [name for name in holders if name.endswith(".weight")]
    if not weights:
        return None
    head = next((name for name in weights if is_head(name) and is_word_embedding(holders[name])), None)
    head = head or next(filter(is_head, weights), weights[0])
    flag, kept = tied(dict(config)), keeps_flag(config)
    return Ties(holders, head, holders[head], flag is True or (head not in tensors and (flag is None or kept)), kept)


def _name_of(config: Mapping[str, Any], name: str, tensor: Shaped) -> str:
    """The name under which a tensor has to be stored so that it is loaded as `name`."""
    for stored in (name, f"language_model.{name}"):
        if name in in_memory(config, {stored: tensor}):
            return stored
    return name
