"""Describe one source from its headers and JSON files. No weight is read or downloaded.

`inspect_source` answers for anything that exists, including what cannot be merged (`kind` and `detail` say why); callers
that need a model or an adapter open it with `open_checkpoint` or `open_adapter_folder`, which raise otherwise.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mcp_server.errors import NotAModel
from mcp_server.formats.adapter_folder import AdapterFolder, open_adapter_folder
from mcp_server.formats.adapter_info import describe_adapter
from mcp_server.formats.card import front_matter_of, named_original
from mcp_server.formats.checkpoint import Checkpoint, locate, open_checkpoint, read_headers
from mcp_server.formats.folder import GGUF_ORIGINAL, classify
from mcp_server.formats.gguf import read_beginning
from mcp_server.formats.gguf_model import SAME
from mcp_server.formats.hub.copies import is_copy, listing_of
from mcp_server.formats.hub.listing import chosen_gguf, models_in_gguf, original_of
from mcp_server.formats.identity import architecture_hash, architecture_name, chat_template_hash, config_field, tokenizer_hash
from mcp_server.formats.licence import read_licence
from mcp_server.formats.recipe.refs import parse_ref
from mcp_server.formats.refs import hub_id_of
from mcp_server.formats.tensors import DTYPES, StoredTensor, read_json, stored_tensors
from mcp_server.schemas.inspect import SourceInfo


def inspect_source(ref: str, relative_to: Path | None = None) -> SourceInfo:
    """What one ref is: a folder, a hub id in the local cache, an alias, or `base+adapter`.

    Raises `NotFound` when nothing is there, `Malformed` for files that break their format, `NotAModel` for `base+adapter` whose
    parts are not that. Every other folder gets an answer, if need be `not_a_model` with the reason.
    """
    parsed = parse_ref(ref, "the source")
    if parsed.adapter_ref:
        adapter, base = open_adapter_folder(parsed.adapter_ref, relative_to), open_checkpoint(parsed.base_ref, relative_to)
        return _adapter_source(ref, adapter, base)
    path = locate(parsed.base_ref, relative_to)
    holding = classify(path)
    if holding.kind == "lora":
        return _adapter_source(ref, open_adapter_folder(ref, relative_to), None)
    if holding.kind == "gguf" and is_copy(path):
        return _gguf_on_hub(ref, path)
    if holding.kind not in ("full", "gguf"):
        return SourceInfo(ref=ref, path=str(path), kind=holding.kind, detail=holding.detail)
    try:
        return _model_source(open_checkpoint(ref, relative_to), path)
    except NotAModel as unread:
        if holding.kind == "gguf":
            return SourceInfo(ref=ref, path=str(path), kind="gguf", detail=f"{unread.message}; {unread.next_step}")
        if unread.details.get("kind") != "quantised":
            raise
        detail = f"{unread.message}; {unread.next_step}"
        stored: dict[str, StoredTensor] = {}
        for file, header in read_headers(path)[0].items():
            stored |= stored_tensors(file, header)
        shape = _shape(read_json(path / "config.json"))
        return SourceInfo(ref=ref, path=str(path), kind="quantised", detail=detail, **shape, **_sizes(stored))


def _gguf_on_hub(ref: str, path: Path) -> SourceInfo:
    """Of a repository with nothing but GGUF: what the first bytes of one file, the listing and the card say."""
    listing = listing_of(path)
    models = models_in_gguf(list(listing.sizes))
    files = chosen_gguf(listing.hub_id, list(listing.sizes), None)
    began = read_beginning(next(path.glob("*.gguf")))
    said, name = began.metadata, str(began.metadata.get("general.architecture"))
    several = f", one of {len(models)} GGUF models" if len(models) > 1 else ""
    what = f"its weights are GGUF ({files[0]}{several}; architecture {name})"
    original = named_original(path, listing.hub_id)
    better = f"its card names {original} as the original, which loses less" if original else ""
    if with_config := (path / "config.json").is_file():
        detail = f"{what}; fetch it to have it checked and merged (model-merging fetch {listing.hub_id})"
    else:
        detail = f"{what}, which holds no config.json, and none lies beside it; {better or GGUF_ORIGINAL}"
    told = {field: value for key, field in SAME if isinstance(value := said.get(f"{name}.{key}"), int)}
    shape = _shape(read_json(path / "config.json")) if with_config else {}
    return SourceInfo(
        ref=ref,
        path=str(path),
        kind="gguf",
        detail=f"{detail}; {better}" if with_config and better else detail,
        **{**told, "vocabulary": began.vocabulary, **{key: value for key, value in shape.items() if value is not None}},
        bytes=sum(listing.sizes[file] for file in files),
        tensors=said.get("split.tensors.count", began.tensors),
        chat_template_hash=chat_template_hash(path),
        tokenizer_hash=tokenizer_hash(path),
        licence=read_licence(path),
        revision=listing.commit,
    )


def _model_source(model: Checkpoint, path: Path) -> SourceInfo:
    config, folder, packed = model.config, model.folder, model.packed_as
    sizes = _sizes(model.tensors) | {"bytes": sum(info.nbytes for h in model.headers.values() for info in h.tensors.values())}
    quantised = f"its weights are quantised ({', '.join(packed)}); they are unpacked to {sizes['dtype']} as they are read"
    if packed and (original := _unquantised(folder)) is not None:
        quantised += f"; {original}, which loses less"
    return SourceInfo(
        ref=model.ref,
        path=str(path),
        kind="quantised" if packed else "full",
        detail=quantised if packed else _stray(model),
        **_shape(config),
        architecture_hash=architecture_hash(config, model.tensors),
        **sizes,
        tied_embeddings=model.tied,
        tokenizer_hash=tokenizer_hash(folder),
        chat_template_hash=chat_template_hash(folder),
        licence=read_licence(folder),
        revision=_commit(folder),
    )


def _adapter_source(ref: str, adapter: AdapterFolder, base: Checkpoint | None) -> SourceInfo:
    return SourceInfo(
        ref=ref,
        path=str(adapter.folder),
        kind="lora",
        detail="" if base else "an adapter: name it as base+adapter to merge it",
        **(_shape(base.config) if base else {}),
        architecture_hash=architecture_hash(base.config, base.tensors) if base else None,
        **_sizes(adapter.tensors),
        tied_embeddings=base.tied if base else None,
        tokenizer_hash=tokenizer_hash(adapter.folder) or (tokenizer_hash(base.folder) if base else None),
        chat_template_hash=chat_template_hash(adapter.folder) or (chat_template_hash(base.folder) if base else None),
        licence=read_licence(adapter.folder),
        revision=_commit(adapter.folder),
        adapter=describe_adapter(adapter.config, adapter.tensors),
    )


def _unquantised(folder: Path) -> str | None:
    """Which model a quantised copy on a hub was made from, as its card or else its name tells."""
    hub_id = listing_of(folder).hub_id if is_copy(folder) else hub_id_of(folder)
    if hub_id is None:
        return None
    if front_matter_of(folder).get("base_model_relation") == "quantized" and (named := named_original(folder, hub_id)):
        return f"its card names {named} as the original"
    guessed = original_of(hub_id)
    return f"its original is probably {guessed} (owner may differ)" if guessed else None


def _commit(folder: Path) -> str | None:
    return listing_of(folder).commit if is_copy(folder) else None


def _shape(config: dict[str, Any]) -> dict[str, Any]:
    fields = {
        name: config_field(config, name) for name in ("layers", "hidden", "intermediate", "heads", "kv_heads", "vocabulary")
    }
    kind = config.get("model_type")
    return {"architecture": architecture_name(config), "model_type": kind if isinstance(kind, str) else None, **fields}


def _sizes(tensors: dict[str, StoredTensor]) -> dict[str, Any]:
    by_dtype: dict[str, int] = {}
    for tensor in tensors.values():
        by_dtype[tensor.dtype] = by_dtype.get(tensor.dtype, 0) + tensor.number_bytes
    largest = max(tensors.items(), key=lambda item: item[1].count, default=None)
    main = max(by_dtype, key=lambda dtype: by_dtype[dtype], default=None)
    return {
        "parameters": sum(tensor.count for tensor in tensors.values()),
        "bytes": sum(by_dtype.values()),
        "tensors": len(tensors),
        "dtype": DTYPES.get(main, main) if main else None,
        "largest_tensor": {"name": largest[0], "shape": list(largest[1].shape), "elements": largest[1].count}
        if largest
        else None,
    }


def _stray(model: Checkpoint) -> str:
    if model.shadowed_by is None:
        return ""
    return (
        f"{model.shadowed_by} lies beside a sharded checkpoint: transformers loads it and ignores the shards; remove one of them"
    )
