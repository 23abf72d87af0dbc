"""Compare sources field by field, and say what each difference means for merging them.

fatal                    the weights do not line up; no method can merge them
needs_tokenizer_block    they line up once the recipe says how to map tokens
caution                  it runs, and one source's meaning is lost or bent; the reason says how
harmless                 nothing to do
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Literal

from mcp_server.errors import BadInput, MergingError, NotAModel, NotFound
from mcp_server.formats.behaviour import WHY, differing
from mcp_server.formats.checkpoint import open_checkpoint
from mcp_server.formats.folder import folder_of
from mcp_server.formats.hub.copies import looking
from mcp_server.formats.identity import token_ids, tokenizer_hash
from mcp_server.formats.licence import licence_notes
from mcp_server.formats.lora import open_adapter
from mcp_server.formats.source import inspect_source
from mcp_server.formats.tensor_names import vocabulary_tensor
from mcp_server.formats.tensors import read_json
from mcp_server.schemas.inspect import Difference, Inspection, SourceInfo
from mcp_server.schemas.limits import MAX_SOURCES
from mcp_server.steps.inspect.bases import base_differences, unrelated_weights
from mcp_server.system.collecting import uncollected

Meaning = Literal["fatal", "needs_tokenizer_block", "caution", "harmless"]

SHOWN: Final = 3
FATAL: Final = {
    "architecture": "tensors of different architectures mean different things, even where names and shapes agree",
    "hidden": "every matrix has another size",
    "intermediate": "the feed-forward matrices have another size",
    "heads": "the same attention matrix is cut into heads differently",
    "kv_heads": "the key and value matrices have another size",
    "layers": "whole models need the same depth; layer slices (passthrough) can still be stacked",
}


@looking()
@uncollected()
def inspect_models(refs: list[str], base: str | None = None, relative_to: Path | None = None) -> Inspection:
    """Inspect `refs` (and `base`), and compare them. A bare adapter is compared through `base`, or the base its config names.

    `compatible` is null when something that decides it is unknown: an adapter's base that is not here, an unreadable shape.
    Hub ids that are not in the local cache are judged by their headers on the hub. Raises as `inspect_source` does, and
    `NotAModel` for a base that is an adapter.
    """
    if len(refs) > MAX_SOURCES:
        raise BadInput(f"{len(refs):,} sources exceed the limit of {MAX_SOURCES:,} for one call", "inspect fewer at once")
    sources = [inspect_source(ref, relative_to) for ref in dict.fromkeys(refs)]
    if base and base not in refs:
        sources.insert(0, inspect_source(base, relative_to))
    named = next((s for s in sources if s.ref == base), None) or _only_model(sources)
    if named is not None and named.adapter is not None and named.ref == base and named.kind == "lora":
        own = named.adapter.base or "its adapter_config.json does not name it"
        raise NotAModel(f"the base {base} is an adapter, not a model", f"give the model that it was trained on: {own}")
    seen = [_through_base(source, named) for source in sources]
    differences = _differences(seen, named)
    licences = {source.ref: source.licence for source in sources}
    return Inspection(
        sources=[source.model_copy(update={"path": None}) if source.revision else source for source in seen],
        compatible=_verdict(seen, differences),
        differences=differences,
        licences=licence_notes(licences) if sources else [],
    )


def _only_model(sources: list[SourceInfo]) -> SourceInfo | None:
    """One full model among adapters is what they would be put on."""
    models = [source for source in sources if source.kind != "lora"]
    return models[0] if len(models) == 1 < len(sources) and models[0].kind in ("full", "quantised") else None


def _through_base(source: SourceInfo, base: SourceInfo | None) -> SourceInfo:
    """A bare adapter has no architecture of its own: fill the fields in from the base that it will be merged on."""
    if source.kind != "lora" or source.architecture_hash is not None:
        return source
    found = base
    if found is None and source.adapter and source.adapter.base:
        try:
            found = inspect_source(source.adapter.base)
        except NotFound:
            return source
    if found is None or not found.is_model:
        return source
    fields = (
        "architecture",
        "architecture_hash",
        "model_type",
        "layers",
        "hidden",
        "intermediate",
        "heads",
        "kv_heads",
        "vocabulary",
    )
    update: dict[str, Any] = {name: getattr(found, name) for name in fields}
    update["tokenizer_hash"] = source.tokenizer_hash or found.tokenizer_hash
    update["tied_embeddings"] = found.tied_embeddings
    update["detail"] = f"an adapter: name it as {found.ref}+{source.ref} to merge it"
    return source.model_copy(update=update)


def _differences(sources: list[SourceInfo], base: SourceInfo | None) -> list[Difference]:
    models = [source for source in sources if source.kind in ("full", "lora", "quantised") or source.is_undecided]
    found = [
        difference
        for field, why in FATAL.items()
        if (difference := _field(models, field, "fatal", why, getattr_of(field))) is not None
    ]
    found += _tensors([model for model in models if model.is_model])
    found += _misfits(models, base)
    found += base_differences(models, base)
    if not any(d.meaning == "fatal" for d in found):
        found += unrelated_weights(models)
    found += _tokens(models)
    found += _config_cautions(models)
    for field, meaning, why in (
        ("dtype", "harmless", "mixed inputs are promoted; set dtype in the recipe to choose"),
        ("tied_embeddings", "caution", "one source trained its output head apart from the embedding; tying it again drops that"),
        ("chat_template_hash", "caution", "the output takes the base's template; prompt it in that form, or set chat_template"),
        ("licence", "harmless", "see licences"),
    ):
        considered = [m for m in models if m.kind != "lora"] if field in ("dtype", "licence") else models
        if difference := _field(considered, field, meaning, why, getattr_of(field)):  # type: ignore[arg-type]
            found.append(difference)
    return found


def getattr_of(field: str) -> Callable[[SourceInfo], Any]:
    return lambda source: getattr(source, field)


def _field(
    sources: list[SourceInfo], field: str, meaning: Meaning, why: str, read: Callable[[SourceInfo], Any]
) -> Difference | None:
    values = {source.ref: read(source) for source in sources}
    known = [value for value in values.values() if value is not None]
    if all(value == known[0] for value in known):
        return None
    return Difference(field=field, values=values, meaning=meaning, why=why)


def _tokens(sources: list[SourceInfo]) -> list[Difference]:
    """Vocabulary sizes and token ids. The tokenizer files may differ while every token keeps its id; only then is it harmless."""
    found = []
    why = "embedding rows do not line up; add 'tokenizer: {source: base}' (or union) to the recipe"
    if size := _field(sources, "vocabulary", "needs_tokenizer_block", why, getattr_of("vocabulary")):
        found.append(size)
    hashes = _field(sources, "tokenizer_hash", "harmless", "", getattr_of("tokenizer_hash"))
    if hashes is None:
        return found
    tables = [ids for source in sources if source.tokenizer_hash and (ids := _token_table(source)) is not None]
    if any(source.revision for source in sources):  # their files are here now, and may be the very same
        read = [source.model_copy(update={"tokenizer_hash": _read_hash(source)}) for source in sources]
        hashes = _field(read, "tokenizer_hash", "harmless", "", getattr_of("tokenizer_hash"))
        if hashes is None:
            return found
    clash = _clash(tables)
    if clash:
        text = f"the same id means different tokens ({clash}); add 'tokenizer: {{source: base}}' (or union) to the recipe"
        found.append(hashes.model_copy(update={"field": "tokenizer", "meaning": "needs_tokenizer_block", "why": text}))
    elif len(tables) == len({s.ref for s in sources if s.tokenizer_hash}):
        text = "the files differ, but every shared id means the same token"
        found.append(hashes.model_copy(update={"field": "tokenizer", "why": text}))
    else:
        text = "the files differ and are not in tokenizer.json form, so ids could not be compared; check that they agree"
        found.append(hashes.model_copy(update={"field": "tokenizer", "meaning": "caution", "why": text}))
    return found


def _token_table(source: SourceInfo) -> dict[str, int] | None:
    return token_ids(folder_of(source.path)) if source.path else None


def _read_hash(source: SourceInfo) -> str | None:
    return tokenizer_hash(folder_of(source.path)) or source.tokenizer_hash if source.path else source.tokenizer_hash


def _clash(tables: list[dict[str, int]]) -> str:
    """One id that means different tokens in two tables, as text, or ''."""
    if not tables:
        return ""
    first = {number: token for token, number in tables[0].items()}
    for table in tables[1:]:
        for token, number in table.items():
            if first.get(number, token) != token:
                return f"id {number} is {first[number]!r} in one and {token!r} in another"
    return ""


def _tensors(models: list[SourceInfo]) -> list[Difference]:
    """Tensors that are missing on one side or have another shape there; embedding rows and tied heads are judged elsewhere."""
    if len({m.architecture_hash for m in models}) < 2 or len({m.layers for m in models}) > 1:
        return []
    opened = {m.ref: open_checkpoint(m.path) for m in models if m.path}
    first, *others = opened.values()
    values: dict[str, Any] = {}
    for model in others:
        names = sorted(set(first.tensors) ^ set(model.tensors))
        shapes = [n for n, t in model.tensors.items() if n in first.tensors and t.shape != first.tensors[n].shape]
        odd = [name for name in (*names, *shapes) if not vocabulary_tensor(name)]
        if odd:
            values[model.ref] = f"{', '.join(odd[:SHOWN])}" + (f" and {len(odd) - SHOWN} more" if len(odd) > SHOWN else "")
    why = f"these tensors are missing on one side or have another shape than in {first.ref}"
    return [Difference(field="tensors", values=values, meaning="fatal", why=why)] if values else []


def _misfits(models: list[SourceInfo], base: SourceInfo | None) -> list[Difference]:
    """Adapters whose factors do not match the base they would be put on."""
    if base is None or not base.is_model or base.path is None:
        return []
    target = open_checkpoint(base.path)
    values = {}
    for source in models:
        if source.kind == "lora" and source.path:
            try:
                open_adapter(source.path, target.tensors, target.config)
            except MergingError as refused:
                values[source.ref] = refused.message
    why = f"the adapter cannot be merged into {base.ref}"
    return [Difference(field="adapter_shape", values=values, meaning="fatal", why=why)] if values else []


def _config_cautions(sources: list[SourceInfo]) -> list[Difference]:
    configs = {s.ref: read_json(folder_of(s.path) / "config.json") for s in sources if s.is_model and s.path}
    return [
        Difference(field=setting, values=values, meaning="caution", why=WHY[setting])
        for setting, values in differing(configs).items()
    ]


def _verdict(sources: list[SourceInfo], differences: list[Difference]) -> bool | None:
    if any(difference.meaning == "fatal" for difference in differences):
        return False
    if any(source.kind != "lora" and not source.is_model and not source.is_undecided for source in sources):
        return False
    if any(source.architecture is None or source.is_undecided for source in sources):
        return None
    if any(difference.field == "adapter_base" for difference in differences):
        return None
    hashes = {source.architecture_hash for source in sources if source.architecture_hash}
    tokens = any(difference.meaning == "needs_tokenizer_block" for difference in differences)
    if len(hashes) > 1 and not tokens and not any(d.field == "tied_embeddings" for d in differences):
        return None
    return True
