"""Describe one source from its headers and JSON files. No weight is read, nothing is downloaded.

`inspect_source` answers for anything that exists, including what cannot be merged (`kind` and `detail` say why);
`open_checkpoint` and `open_adapter` are for callers that need a model or an adapter and raise otherwise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from mcp_server.errors import NotAModel, NotFound, Unsupported
from mcp_server.formats.adapter_info import describe_adapter
from mcp_server.formats.folder import FolderKind, adapter_config, classify
from mcp_server.formats.identity import architecture_hash, architecture_name, chat_template_hash, config_field, tokenizer_hash
from mcp_server.formats.licence import read_licence
from mcp_server.formats.quantised import Packing, Stored, Weights, find_weights
from mcp_server.formats.recipe.refs import parse_ref
from mcp_server.formats.refs import is_hub_id, resolve_ref, split_revision
from mcp_server.formats.safetensors import DTYPE_BITS, read_header
from mcp_server.formats.tensors import DTYPES, FLOATS, StoredTensor, StoredTensors, read_json, read_tensors
from mcp_server.schemas.inspect import AdapterInfo, SourceInfo


@dataclass(frozen=True)
class Checkpoint:
    """A full model on disk: its config and its tensors by name."""

    ref: str
    folder: Path
    config: dict[str, Any]
    stored: StoredTensors
    packings: tuple[Packing, ...] = ()
    """How its packed weights are packed; `stored` describes them as they are unpacked."""

    @property
    def tensors(self) -> dict[str, StoredTensor]:
        return self.stored.tensors

    @cached_property
    def layers(self) -> int | None:
        return config_field(self.config, "layers")

    @property
    def bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors.values())

    @property
    def tied(self) -> bool:
        """Whether the output head is the embedding. transformers' configs leave the flag out when it has its default, true."""
        flag = self.config.get("tie_word_embeddings")
        return bool(flag) if flag is not None else "lm_head.weight" not in self.tensors


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter on disk."""

    ref: str
    folder: Path
    config: dict[str, Any]
    stored: StoredTensors
    info: AdapterInfo


def locate(ref: str, relative_to: Path | None = None) -> Path:
    """The local path of a ref without adapter part. Raises `NotFound` for a missing path or a hub id that is not cached."""
    start = relative_to or Path.cwd()
    name, revision = split_revision(ref, start)
    resolved = resolve_ref(name, start, revision)
    if is_hub_id(resolved):
        raise NotFound(
            f"{ref} is not a folder here and not in the local Hugging Face cache",
            f"download it first: hf download {name}" + (f" --revision {revision}" if revision else ""),
            ref=ref,
            hub_id=True,
        )
    path = Path(resolved)
    if not path.exists():
        if ref.startswith("demo:"):
            raise NotFound(f"{ref} is not made yet ({path} does not exist)", "run `model-merging demo` once", ref=ref)
        raise NotFound(f"{path} does not exist", "check the path" + _sibling_hint(path), ref=ref)
    return path


def open_checkpoint(ref: str, relative_to: Path | None = None) -> Checkpoint:
    """A full safetensors model; packed weights whose format is read count. Raises `NotFound`, `NotAModel` or `Malformed`."""
    path = locate(ref, relative_to)
    holding = classify(path)
    if holding.kind != "full":
        raise _not_a(ref, path, holding, "a full model")
    config, stored = read_json(path / "config.json"), read_tensors(path)
    try:
        unpacked, weights = _unpacked(path, config, stored)
    except Unsupported as unread:
        raise _not_a(ref, path, FolderKind("quantised", f"{unread.message}; {unread.next_step}"), "a full model") from unread
    return Checkpoint(ref, path, config, unpacked, tuple(weights.packed.values()))


def _unpacked(path: Path, config: dict[str, Any], stored: StoredTensors) -> tuple[StoredTensors, Weights]:
    """The tensors as the numbers that they stand for: packed weights by their own name, shape, and the dtype they unpack to."""
    plain = all(tensor.dtype in FLOATS for tensor in stored.tensors.values())
    headers = {} if plain else {path / name: read_header(path / name) for name in stored.files}
    weights = find_weights(Stored.of(str(path), headers, config))
    tensors: dict[str, StoredTensor] = {}
    for name, tensor in stored.tensors.items():
        if (weight := weights.replaced.get(name)) is None:
            if name not in weights.dropped:
                tensors[name] = tensor
        elif weight not in tensors:
            packed = weights.packed[weight]
            count = math.prod(packed.shape)
            tensors[weight] = StoredTensor(packed.dtype, packed.shape, count, count * DTYPE_BITS[packed.dtype] // 8, tensor.file)
    return StoredTensors(tensors, stored.files, stored.shadowed_by), weights


def open_adapter(ref: str, relative_to: Path | None = None) -> Adapter:
    """A LoRA adapter in safetensors. Raises `NotFound`, `NotAModel` or `Malformed`."""
    path = locate(ref, relative_to)
    holding = classify(path)
    if holding.kind != "lora":
        raise _not_a(ref, path, holding, "an adapter")
    config, stored = adapter_config(path), read_tensors(path, "adapter_model")
    return Adapter(ref, path, config, stored, describe_adapter(config, stored.tensors))


def inspect_source(ref: str, relative_to: Path | None = None) -> SourceInfo:
    """What one ref is: a folder, a hub id in the local cache, an alias, or `base+adapter`.

    Raises `NotFound` when nothing is there, `Malformed` for files that break their format, `NotAModel` for `base+adapter` whose
    parts are not that. Every other folder gets an answer, if need be `not_a_model` with the reason.
    """
    parsed = parse_ref(ref, "the source")
    if parsed.adapter_ref:
        return _adapter_source(ref, open_adapter(parsed.adapter_ref, relative_to), open_checkpoint(parsed.base_ref, relative_to))
    path = locate(parsed.base_ref, relative_to)
    holding = classify(path)
    if holding.kind == "lora":
        return _adapter_source(ref, open_adapter(ref, relative_to), None)
    if holding.kind != "full":
        return SourceInfo(ref=ref, path=str(path), kind=holding.kind, detail=holding.detail)
    config, stored = read_json(path / "config.json"), read_tensors(path)
    try:
        unpacked, weights = _unpacked(path, config, stored)
    except Unsupported as unread:
        detail = f"{unread.message}; {unread.next_step}"
        return SourceInfo(ref=ref, path=str(path), kind="quantised", detail=detail, **_shape(config), **_sizes(stored.tensors))
    return _model_source(Checkpoint(ref, path, config, unpacked), weights.kinds, stored.tensors)


def _model_source(model: Checkpoint, packed: tuple[str, ...], on_disk: dict[str, StoredTensor]) -> SourceInfo:
    config, folder = model.config, model.folder
    sizes = _sizes(model.tensors) | {"bytes": sum(tensor.nbytes for tensor in on_disk.values())}
    quantised = f"its weights are quantised ({', '.join(packed)}); they are unpacked to {sizes['dtype']} as they are read"
    return SourceInfo(
        ref=model.ref,
        path=str(folder),
        kind="quantised" if packed else "full",
        detail=quantised if packed else _stray(model.stored),
        **_shape(config),
        architecture_hash=architecture_hash(config, model.tensors),
        **sizes,
        tied_embeddings=model.tied,
        tokenizer_hash=tokenizer_hash(folder),
        chat_template_hash=chat_template_hash(folder),
        licence=read_licence(folder),
    )


def _adapter_source(ref: str, adapter: Adapter, base: Checkpoint | None) -> SourceInfo:
    return SourceInfo(
        ref=ref,
        path=str(adapter.folder),
        kind="lora",
        detail="" if base else "an adapter: name it as base+adapter to merge it",
        **(_shape(base.config) if base else {}),
        architecture_hash=architecture_hash(base.config, base.tensors) if base else None,
        **_sizes(adapter.stored.tensors),
        tied_embeddings=base.tied if base else None,
        tokenizer_hash=tokenizer_hash(adapter.folder) or (tokenizer_hash(base.folder) if base else None),
        chat_template_hash=chat_template_hash(adapter.folder) or (chat_template_hash(base.folder) if base else None),
        licence=read_licence(adapter.folder),
        adapter=adapter.info,
    )


def _shape(config: dict[str, Any]) -> dict[str, Any]:
    fields = {
        name: config_field(config, name) for name in ("layers", "hidden", "intermediate", "heads", "kv_heads", "vocabulary")
    }
    kind = config.get("model_type")
    return {"architecture": architecture_name(config), "model_type": kind if isinstance(kind, str) else None, **fields}


def _sizes(tensors: dict[str, StoredTensor]) -> dict[str, Any]:
    by_dtype: dict[str, int] = {}
    for tensor in tensors.values():
        by_dtype[tensor.dtype] = by_dtype.get(tensor.dtype, 0) + tensor.nbytes
    largest = max(tensors.items(), key=lambda item: item[1].elements, default=None)
    main = max(by_dtype, key=lambda dtype: by_dtype[dtype], default=None)
    return {
        "parameters": sum(tensor.elements for tensor in tensors.values()),
        "bytes": sum(by_dtype.values()),
        "tensors": len(tensors),
        "dtype": DTYPES.get(main, main) if main else None,
        "largest_tensor": {"name": largest[0], "shape": list(largest[1].shape), "elements": largest[1].elements}
        if largest
        else None,
    }


def _stray(stored: StoredTensors) -> str:
    if stored.shadowed_by is None:
        return ""
    return (
        f"{stored.shadowed_by} lies beside a sharded checkpoint: transformers loads it and ignores the shards; remove one of them"
    )


def _not_a(ref: str, path: Path, holding: FolderKind, wanted: str) -> NotAModel:
    reason = holding.detail
    if holding.kind == "lora":
        reason = "it is a LoRA adapter; name it as base+adapter, with the model that it was trained on"
    elif holding.kind == "full":
        reason = "it is a full model"
    what, _, then = reason.partition("; ")
    return NotAModel(f"{path} is not {wanted}: {what}", then or "name another folder", ref=ref, kind=holding.kind)


def _sibling_hint(path: Path) -> str:
    """Name what the nearest existing folder holds, so that a typo shows."""
    parent = next((p for p in path.parents if p.is_dir()), None)
    if parent is None or parent == Path(parent.anchor):
        return ""
    names = sorted(entry.name for entry in parent.iterdir() if entry.is_dir())[:6]
    return f"; {parent} holds {', '.join(names)}" if names else f"; {parent} holds no folders"
