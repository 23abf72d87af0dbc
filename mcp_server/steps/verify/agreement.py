"""Config, tokenizer and tied weights against the tensors: what a loader would trip over, or silently get wrong."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mcp_server.errors import MergingError
from mcp_server.formats import chat_template
from mcp_server.formats.identity import architecture_name, chat_template_hash, config_field, token_ids
from mcp_server.formats.tensors import StoredTensor, read_json
from mcp_server.formats.tied import keeps_flag
from mcp_server.recompute.merge import Merge
from mcp_server.recompute.reading import same_values
from mcp_server.recompute.sources import is_embedding, is_head
from mcp_server.schemas.evidence import Check
from mcp_server.steps.verify.settings import other_numbers

_SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")


def checks(merge: Merge, *, full: bool) -> Iterator[Check]:
    if merge.is_adapter:
        return
    embedding = _embedding(merge.tensors)
    excused = _faults_of_the_base(merge, full=full)
    for check in (
        _config(merge.config, embedding),
        _tied(merge.config, merge.tensors, embedding, full=full),
        *_tokenizer(merge, embedding),
    ):
        if check.passed is False and check.name in excused:
            yield Check(name=check.name, passed=True, detail=f"{check.detail}; so it is in the base")
        else:
            yield check


def _faults_of_the_base(merge: Merge, *, full: bool) -> set[str]:
    """What config and tensors of the base already disagree about is no fault of the merge."""
    if merge.base is None:
        return set()
    embedding = _embedding(merge.base.tensors)
    own = (_config(merge.base.config, embedding), _tied(merge.base.config, merge.base.tensors, embedding, full=full))
    faults = {check.name for check in own if check.passed is False}
    rows = embedding[1].shape[0] if embedding else None
    try:
        ids = token_ids(merge.base.folder)
    except MergingError:
        return faults | {"tokenizer"}
    beyond = rows is not None and ids is not None and max(ids.values()) >= rows
    if beyond or _special_outside(merge.base.folder, merge.base.config, rows):
        faults.add("tokenizer")
    return faults


def _embedding(tensors: dict[str, StoredTensor]) -> tuple[str, StoredTensor] | None:
    """The one input embedding; none when several could be it (encoder and decoder, text and other tokens)."""
    found = [(name, tensor) for name, tensor in tensors.items() if is_embedding(name) and len(tensor.shape) == 2]
    shared = [entry for entry in found if "shared" in entry[0]]
    return (shared or found)[0] if len({entry[1].shape for entry in found}) == 1 or shared else None


def _config(config: dict[str, Any], embedding: tuple[str, StoredTensor] | None) -> Check:
    if embedding is None:
        return Check(name="config", passed=True, detail="no tensor is named like an input embedding; there is no size to compare")
    name, tensor = embedding
    vocabulary, hidden = config_field(config, "vocabulary"), config_field(config, "hidden")
    if vocabulary is not None and vocabulary != tensor.shape[0]:
        return Check(name="config", passed=False, detail=f"vocab_size is {vocabulary}, {name} has {tensor.shape[0]} rows")
    if hidden is not None and hidden != tensor.shape[-1]:
        return Check(name="config", passed=False, detail=f"the hidden size is {hidden}, {name} has {tensor.shape[-1]} columns")
    return Check(name="config", passed=True, detail=f"vocabulary {vocabulary}, hidden size {hidden}, as the embedding has")


def _tied(
    config: dict[str, Any], tensors: dict[str, StoredTensor], embedding: tuple[str, StoredTensor] | None, *, full: bool
) -> Check:
    """A tied head must be absent or equal to the embedding; an untied one of a causal language model must be there."""
    head = next((t for n, t in tensors.items() if n.endswith(("lm_head.weight", "embed_out.weight"))), None)
    flag = config.get("tie_word_embeddings")
    if head is None:
        if flag is False and (architecture_name(config) or "").endswith("ForCausalLM") and not any(map(is_head, tensors)):
            return Check(name="tied", passed=False, detail="config.json says the output head is not tied, but lm_head is missing")
        return Check(name="tied", passed=True, detail="the output head is the embedding, stored once")
    if flag is True and keeps_flag(config):
        return Check(name="tied", passed=True, detail="the class needs its flag; a head of its own is loaded under it")
    if flag is not True or embedding is None:
        return Check(name="tied", passed=True, detail="the output head has its own weights")
    if head.shape != embedding[1].shape or not same_values(head, embedding[1], full=full):
        detail = "config.json ties the output head to the embedding, but two different tensors are stored: a loader drops one"
        return Check(name="tied", passed=False, detail=detail)
    return Check(name="tied", passed=True, detail="the output head is stored twice with equal values")


def _tokenizer(merge: Merge, embedding: tuple[str, StoredTensor] | None) -> Iterator[Check]:
    try:
        ids = token_ids(merge.folder)
    except MergingError as error:
        yield Check(name="tokenizer", passed=False, detail=error.message)
        return
    had_one = merge.base is not None and any((merge.base.folder / n).is_file() for n in ("tokenizer.json", "tokenizer.model"))
    if ids is None:
        present = (merge.folder / "tokenizer.model").is_file()
        if present:
            yield Check(name="tokenizer", passed=True, detail="a SentencePiece file; its ids are not compared")
        elif had_one and merge.recipe is not None and not merge.assumed:
            yield Check(name="tokenizer", passed=False, detail="the base has a tokenizer, the merge has none; copy it")
        else:
            words = "there is none; copy the base's before you use it" if had_one else "neither base nor merge has one"
            yield Check(name="tokenizer", passed=True, detail=words)
        return
    rows = embedding[1].shape[0] if embedding else None
    token, last = max(ids.items(), key=lambda item: item[1])
    if rows is not None and last >= rows:
        yield Check(name="tokenizer", passed=False, detail=f"token {token!r} has id {last}, the embedding has {rows} rows")
        return
    if wrong := _special_outside(merge.folder, merge.config, rows):
        yield Check(name="tokenizer", passed=False, detail=wrong)
        return
    if wrong := other_numbers(merge, ids):
        yield Check(name="tokenizer", passed=False, detail=wrong)
        return
    yield Check(name="tokenizer", passed=True, detail=f"{len(ids)} tokens, highest id {last}, embedding rows {rows}")
    yield _template(merge)


def _special_outside(folder: Path, config: dict[str, Any], rows: int | None) -> str:
    generation = folder / "generation_config.json"
    tables = [("config.json", config)]
    if generation.is_file():
        tables.append((generation.name, read_json(generation)))
    for file, table in tables:
        for key in _SPECIAL:
            value = table.get(key)
            for number in value if isinstance(value, list) else [value]:
                if isinstance(number, int) and rows is not None and not 0 <= number < rows:
                    return f"{file} gives {key} {number}, the embedding has {rows} rows"
    return ""


def _asked_for(merge: Merge) -> str | None:
    """The text of the chat template that the recipe gives, or that most models have where it says `auto`; of names it is
    mergekit's, which is not looked for here."""
    wanted = merge.recipe.chat_template if merge.recipe else None
    if not wanted or not chat_template.is_name(wanted):
        return wanted or None
    if wanted != chat_template.AUTO or merge.missing:
        return None
    votes = chat_template.votes(source.folder for source in merge.by_ref.values())
    most = max(votes.values(), default=0)
    found = [text for text, count in votes.items() if count == most]
    return found[0] if len(found) == 1 else None  # mergekit draws one of equally many


def _template(merge: Merge) -> Check:
    here = chat_template_hash(merge.folder)
    if (meant := _asked_for(merge)) and here is not None:
        fits = chat_template.stored(merge.folder).get(chat_template.DEFAULT, "").strip() == meant.strip()
        how = "is the one" if fits else "is not the one"
        return Check(name="chat_template", passed=fits, detail=f"the chat template {how} that the recipe asks for")
    there = chat_template_hash(merge.base.folder) if merge.base else None
    if there is not None and here is None:
        detail = "the base has a chat template, the merge has none: prompts would be formatted by guesswork"
        return Check(name="chat_template", passed=False, detail=detail)
    if here is None:
        return Check(name="chat_template", passed=True, detail="there is none, and the base has none")
    same = "the base's" if here == there else "its own" if there else "present"
    return Check(name="chat_template", passed=True, detail=f"chat template: {same}")
