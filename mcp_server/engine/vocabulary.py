"""One vocabulary for sources whose tokenizers differ: which rows of which embedding stand for each token of the output.

`union` is the base's vocabulary with the tokens that others have besides, in the order of the sources and of their ids; `base`,
or a model, is that one's. A token that a source lacks takes the row of the one model that has it, else of the base, else the mean
of those that have it, as in mergekit 0.1.5; a `tokens` entry says it otherwise. Rows that belong to no token (padding) are kept,
which mergekit cuts off, and ids of the base never change.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from mcp_server.engine.sources import Source
from mcp_server.errors import Incompatible, Malformed, NotFound, Unsupported
from mcp_server.formats.checkpoint import locate
from mcp_server.formats.folder import folder_of
from mcp_server.formats.gathered import AVERAGE, MEAN, ZERO, gathered
from mcp_server.formats.identity import token_ids
from mcp_server.formats.recipe import ModelRef, Recipe, parse_ref
from mcp_server.formats.tensor_names import vocabulary_tensor
from mcp_server.formats.tensors import StoredTensor, read_json

_PLAIN: Final = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": True, "special": False}
Place = tuple[int, int]


@dataclass(frozen=True)
class Vocabulary:
    """`rows` of the output's embedding; its tokenizer is that in `folder` with `added` tokens (as tokenizer.json has them)."""

    rows: int
    folder: Path
    added: tuple[dict[str, Any], ...]
    said: str


@dataclass(frozen=True)
class _Model:
    """One source: its tokens by id, those with a row only, and how many rows it has."""

    ref: ModelRef
    source: Source
    folder: Path
    ids: dict[str, int]
    rows: int


def align(recipe: Recipe, sources: dict[ModelRef, Source]) -> tuple[dict[ModelRef, Source], Vocabulary | None]:
    """The sources with their vocabulary tensors in the output's order; None where every source has that order already.

    Raises `Unsupported`, `Incompatible` or `Malformed` for what cannot be aligned.
    """
    if not recipe.tokenizer_from:
        return sources, None
    models = [_model(ref, source) for ref, source in sources.items()]
    base = next(model for model in models if model.ref == recipe.donor)
    settings = recipe.tokenizer or {}
    wanted = settings.get("tokens") or {}
    if not isinstance(wanted, dict):
        raise Malformed(f"tokenizer.tokens is {wanted!r}, not a table of tokens", "write tokens: {<tok>: {source: MODEL}}")
    out, folder, least = _output(recipe, base, models)
    added = _added(out, base, models, union=recipe.tokenizer_from == "union")
    added += [{"content": token, **_PLAIN} for token in map(str, wanted) if token not in out and token not in _names(added)]
    free = max(out.values(), default=-1) + 1
    added = [{"id": free + number, **entry} for number, entry in enumerate(added)]
    out = out | {entry["content"]: entry["id"] for entry in added}
    rows = max(least, max(out.values(), default=-1) + 1)
    if pad := settings.get("pad_to_multiple_of"):
        if type(pad) is not int or pad < 1:
            raise Malformed(f"pad_to_multiple_of is {pad!r}", "write a whole number such as 64")
        rows = -(-rows // pad) * pad
    forced = any(isinstance(entry, dict) and entry.get("force") for entry in wanted.values())
    if not forced and all(model.ids == out and model.rows == rows for model in models):
        return sources, None
    choice = _choices(out, models, base, {str(token): entry for token, entry in wanted.items()}, has_base=recipe.base is not None)
    aligned = {model.ref: _aligned(model, models, base, out, rows, choice) for model in models}
    lost = sum(token not in out for model in models for token in model.ids)
    said = f"the vocabulary has {rows} rows: {len(out)} tokens, {len(added)} of them added to those of {folder.name}"
    said += f"; {lost} tokens of the sources are left out" if lost else ""
    return aligned, Vocabulary(rows, folder, tuple(added), said)


def _model(ref: ModelRef, source: Source) -> _Model:
    if source.adapter and (odd := [name for name in source.adapter.changes if vocabulary_tensor(name)]):
        raise Unsupported(
            f"{ref} changes {odd[0]}, which a vocabulary that is put together anew would have to take apart",
            "merge that adapter into its base first, or leave the tokenizer block out",
        )
    folders = [*([source.adapter.folder] if source.adapter else []), source.checkpoint.folder]
    folder = next((folder for folder in folders if (folder / "tokenizer.json").is_file()), folders[-1])
    ids = token_ids(folder)
    if ids is None:
        raise Unsupported(f"{ref} has no readable tokenizer.json, so its vocabulary cannot be compared", "add its tokenizer.json")
    embedding = source.embedding
    if embedding is None:
        raise Unsupported(f"{ref} has no embedding by tokens", "leave the tokenizer block out")
    rows = source.checkpoint.tensors[embedding].shape[0]
    return _Model(ref, source, folder, {token: number for token, number in ids.items() if 0 <= number < rows}, rows)


def _output(recipe: Recipe, base: _Model, models: list[_Model]) -> tuple[dict[str, int], Path, int]:
    """The tokens that the output starts from, the folder of their tokenizer, and how many rows there are at least."""
    named = recipe.tokenizer_from
    if named in ("base", "union"):
        everything = token_ids(base.folder) or {}
        if len(everything) != len(base.ids):
            more = next(token for token in everything if token not in base.ids)
            raise Unsupported(
                f"the tokenizer of {base.ref} has {more!r} at id {everything[more]}, and its embedding has {base.rows} rows",
                "resize the embedding, or remove the tokens that have no row",
            )
        return dict(base.ids), base.folder, base.rows
    ref = parse_ref(str(named))
    known = next((model for model in models if str(model.ref) == str(ref)), None)
    if known is not None:
        return dict(known.ids), known.folder, known.rows
    try:
        folder = folder_of(locate(ref.base_ref))
    except NotFound as missing:
        raise NotFound(f"the tokenizer source: {missing.message}", missing.next_step) from missing
    ids = token_ids(folder)
    if ids is None:
        raise Unsupported(f"{named} has no readable tokenizer.json", "name a model that has one")
    return ids, folder, 0


def _added(out: dict[str, int], base: _Model, models: list[_Model], *, union: bool) -> list[dict[str, Any]]:
    """The tokens of other sources that the base lacks, each with the flags of the first tokenizer that added it."""
    found: dict[str, dict[str, Any]] = {}
    for model in models if union else []:
        entries = read_json(model.folder / "tokenizer.json").get("added_tokens") or []
        flags = {
            str(e.get("content")): {k: e[k] for k in _PLAIN if type(e.get(k)) is bool} for e in entries if isinstance(e, dict)
        }
        for token in sorted(model.ids, key=lambda token: model.ids[token]):
            if token not in out and token not in found and model is not base:
                found[token] = {"content": token, **_PLAIN, **flags.get(token, {})}
    return list(found.values())


def _names(entries: list[dict[str, Any]]) -> set[str]:
    return {entry["content"] for entry in entries}


@dataclass(frozen=True, slots=True)
class _Choice:
    """What stands for a token where a source lacks it, or everywhere if `forced`: one place, or the mean of several."""

    places: tuple[Place, ...]
    forced: bool = False


def _choices(
    out: dict[str, int], models: list[_Model], base: _Model, wanted: dict[str, Any], *, has_base: bool
) -> dict[str, _Choice]:
    found: dict[str, _Choice] = {}
    for token in out:
        having = [(k, model.ids[token]) for k, model in enumerate(models) if token in model.ids]
        entry = wanted.get(token)
        forced = isinstance(entry, dict) and entry.get("force") is True
        if len(having) == len(models) and not forced:
            continue
        if entry is not None:
            found[token] = _Choice((_named(token, entry, models),), forced)
        elif len(having) > 1 and has_base and token in base.ids:
            found[token] = _Choice(((models.index(base), base.ids[token]),))
        else:
            found[token] = _Choice(tuple(having) or ((ZERO, 0),))
    return found


def _named(token: str, entry: Any, models: list[_Model]) -> Place:
    """The row that a `tokens` entry asks for."""
    source = entry.get("source") if isinstance(entry, dict) else None
    kind = source.get("kind") if isinstance(source, dict) else None
    if kind == "zero":
        return ZERO, 0
    name = source.get("model") if isinstance(source, dict) else source
    if isinstance(name, dict):
        name = str(ModelRef.model_validate(name))
    if not isinstance(name, str):
        raise Malformed(
            f"the entry of token {token!r} says {entry!r}, which names no source for it",
            "write source: MODEL, {kind: zero}, or {kind: model_token, model: MODEL, token: TOKEN}",
        )
    k = next((k for k, model in enumerate(models) if str(model.ref) == str(parse_ref(name))), None)
    if k is None:
        raise Incompatible(f"token {token!r} takes its row from {name}, which is not a source of the recipe", "name a source")
    wanted = token
    if isinstance(source, dict) and type(number := source.get("token_id")) is int:
        if not 0 <= number < models[k].rows:
            raise Incompatible(f"token {token!r} takes row {number} of {name}, which has {models[k].rows}", "name another row")
        return k, number
    if isinstance(source, dict) and source.get("token") is not None:
        wanted = str(source["token"])
    if wanted not in models[k].ids:
        raise Incompatible(f"token {token!r} takes the row of {wanted!r} in {name}, which has no such token", "name another")
    return k, models[k].ids[wanted]


def _aligned(
    model: _Model, models: list[_Model], base: _Model, out: dict[str, int], rows: int, choice: dict[str, _Choice]
) -> Source:
    """One source with the output's rows."""
    me, zero = models.index(model), models.index(base)
    taken = set(model.ids.values())
    places: list[Place] = [
        (me, row) if row < model.rows and row not in taken else (zero, row) if row < base.rows else (MEAN, 0)
        for row in range(rows)
    ]
    averages: dict[int, tuple[Place, ...]] = {}
    for token, row in out.items():
        chosen = choice.get(token)
        if token in model.ids and not (chosen and chosen.forced):
            places[row] = (me, model.ids[token])
        elif chosen and len(chosen.places) == 1:
            places[row] = chosen.places[0]
        elif chosen:
            places[row], averages[row] = (AVERAGE, 0), chosen.places
    tensors = dict(model.source.checkpoint.tensors)
    for name, stored in model.source.checkpoint.tensors.items():
        if vocabulary_tensor(name) and len(stored.shape) == 2 and stored.shape[0] == model.rows:
            tensors[name] = gathered(stored, tuple(_twin(other, name, stored) for other in models), places, averages)
    return replace(model.source, checkpoint=replace(model.source.checkpoint, tensors=tensors))


def _twin(other: _Model, name: str, like: StoredTensor) -> StoredTensor:
    """The other model's tensor of that name; what a tied one has instead."""
    found = other.source.checkpoint.tensors.get(name) or (entry.stored if (entry := other.source.find(name)) else None)
    if found is None or len(found.shape) != 2 or found.shape[1] != like.shape[1] or found.shape[0] != other.rows:
        raise Incompatible(f"{name} of {other.ref} does not fit", "sources must share an architecture; check with `inspect`")
    return found
