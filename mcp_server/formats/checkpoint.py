"""A model on disk: its config, and where every tensor's bytes lie. Headers and JSON only, never a weight.

The one reader of checkpoints: inspect, validate, estimate, engine, verify, folding and evaluation open models here, so what is
refused is refused before anything runs, in the same words.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from mcp_server.errors import BadInput, Malformed, NotAModel, NotFound, Unsupported
from mcp_server.formats.class_facts import is_conv1d
from mcp_server.formats.folder import FolderKind, classify, folder_of
from mcp_server.formats.gguf import gguf_files
from mcp_server.formats.gguf_model import read_model, require_config
from mcp_server.formats.hub.copies import opened_while_looking
from mcp_server.formats.hub.headers import header_copy
from mcp_server.formats.identity import config_field
from mcp_server.formats.quantised import Packing, Stored, find_weights, holds_codes
from mcp_server.formats.refs import is_hub_id, not_here, resolve_ref, split_revision
from mcp_server.formats.safetensors import Header, read_header
from mcp_server.formats.tensor_names import without_wrappers
from mcp_server.formats.tensors import FLOATS, StoredTensor, read_json, stored_tensors
from mcp_server.schemas.limits import MAX_TENSORS
from mcp_server.system.collecting import uncollected


@dataclass(frozen=True)
class Checkpoint:
    """A full model. Packed weights stand as the numbers that they unpack to; `headers` are of what the files hold."""

    ref: str
    folder: Path
    config: dict[str, Any]
    tensors: dict[str, StoredTensor]
    headers: dict[Path, Header]
    wrapper: str = ""
    """What was taken out of stored names: `_orig_mod.`, `module.`."""
    shadowed_by: str | None = None
    """A stray whole file beside an index."""
    left_out: dict[str, StoredTensor] = field(default_factory=dict)
    """Scales of what flows through packed layers: they mean nothing for the weights."""
    quantisation: dict[str, Any] = field(default_factory=dict)
    """What its config says of packed weights; empty where it says nothing."""

    @cached_property
    def layers(self) -> int | None:
        return config_field(self.config, "layers")

    @property
    def tied(self) -> bool:
        """Whether the output head is the embedding. transformers' configs leave the flag out when it has its default, true."""
        flag = self.config.get("tie_word_embeddings")
        return bool(flag) if flag is not None else "lm_head.weight" not in self.tensors

    @property
    def packings(self) -> tuple[Packing, ...]:
        """How its packed weights are packed."""
        return tuple(tensor.packed for tensor in self.tensors.values() if tensor.packed is not None)

    @property
    def packed_as(self) -> tuple[str, ...]:
        """The formats of its packed weights, the most frequent first."""
        kinds = [packing.kind for packing in self.packings]
        return tuple(sorted(dict.fromkeys(kinds), key=lambda kind: -kinds.count(kind)))


def locate(ref: str, relative_to: Path | None = None) -> Path:
    """The local path of a ref without adapter part. Raises `NotFound` for a missing path or a hub id that is not cached.

    While hub ids may be judged by their headers, one that is not cached is the copy of these; what the hub refuses is raised.
    """
    start = relative_to or Path.cwd()
    name, revision = split_revision(ref, start)
    resolved = resolve_ref(name, start, revision)
    path = Path(resolved)
    if is_hub_id(resolved) and (copy := header_copy(resolved, revision)) is not None:
        return copy
    if is_hub_id(resolved) or not path.exists():
        raise not_here(ref, resolved, revision, path)
    return path


def open_checkpoint(ref: str, relative_to: Path | None = None) -> Checkpoint:
    """A full model in safetensors or GGUF; packed weights whose format is read count.

    Raises `NotFound`, `NotAModel`, `Malformed`, or `Incompatible` for a GGUF and a config.json of different models; `BadInput`
    when what one call looks at holds more tensors than the limit.
    """
    folder = locate(ref, relative_to)
    opened = opened_while_looking()
    if opened is None:
        return _open(ref, folder)
    if (known := opened.get((ref, folder))) is None:
        known = opened[ref, folder] = _open(ref, folder)
        if (total := tensors_of(opened.values())) > MAX_TENSORS:
            what = f"the models hold {total:,} tensors together, which exceeds the limit of {MAX_TENSORS:,} for one call"
            raise BadInput(what, "ask about fewer at once")
    return known


@uncollected()
def _open(ref: str, folder: Path) -> Checkpoint:
    holding = classify(folder)
    if holding.kind == "gguf":
        return _open_gguf(ref, folder)
    if holding.kind != "full":
        raise not_a("a full model", ref, folder, holding)
    config = read_json(folder / "config.json")
    headers, shadowed_by = read_headers(folder)
    codes = holds_codes((name, info.dtype) for header in headers.values() for name, info in header.tensors.items())
    stored = Stored.of(str(folder), headers if codes else {}, config, _quantisation(folder, headers))
    try:
        unpacked, left_out = _together(folder, headers), dict[str, StoredTensor]()
        if codes:
            unpacked, left_out = _unpacked(unpacked, stored)
    except Unsupported as unread:
        raise NotAModel(unread.message, unread.next_step, ref=ref, kind="quantised") from unread
    names, wrapper = without_wrappers([*unpacked, *left_out])
    tensors, beside = ({names[name]: tensor for name, tensor in found.items()} for found in (unpacked, left_out))
    return Checkpoint(ref, folder, config, tensors, headers, wrapper, shadowed_by, beside, stored.settings)


def tensors_of(models: Iterable[Checkpoint]) -> int:
    """How many tensors the models hold together; one that is named twice counts once."""
    return sum({model.folder: len(model.tensors) for model in models}.values())


def _quantisation(folder: Path, headers: dict[Path, Header]) -> dict[str, Any]:
    """The file that older GPTQ and AWQ models describe their packing in; beside other weights it means nothing."""
    if not any(name.endswith(".qweight") for header in headers.values() for name in header.tensors):
        return {}
    files = [folder / name for name in ("quantize_config.json", "quant_config.json")]
    return next((read_json(file) for file in files if file.is_file()), {})


def _open_gguf(ref: str, path: Path) -> Checkpoint:
    files, folder = gguf_files(path), folder_of(path)
    require_config(folder, files[0])
    config = read_json(folder / "config.json")
    try:
        headers, weights = read_model(files, config)
    except Unsupported as unread:
        raise NotAModel(unread.message, unread.next_step, ref=ref, kind="gguf") from unread
    return Checkpoint(ref, folder, config, {name: _packed(packing) for name, packing in weights.items()}, headers)


def read_headers(folder: Path, stem: str = "model") -> tuple[dict[Path, Header], str | None]:
    """The headers of `stem`.safetensors or its shards, and the name of a whole file that lies beside an index.

    The index is checked against the headers, because a folder that was written twice or copied in part fails only in mid-merge.
    Raises `NotFound` without either, `Malformed` when index and files disagree.
    """
    whole, index = folder / f"{stem}.safetensors", folder / f"{stem}.safetensors.index.json"
    if not index.is_file():
        if whole.is_file():
            return {whole: read_header(whole)}, None
        raise NotFound(f"{folder} has neither {whole.name} nor {index.name}", "save the checkpoint as safetensors")
    table = read_json(index).get("weight_map")
    if not isinstance(table, dict) or not all(isinstance(name, str) for name in table.values()):
        raise Malformed(f"{index} has no weight_map of tensor names to file names", "download or save the checkpoint again")
    names = sorted(set(table.values()))
    for name in names:
        if "\0" in name or Path(name).name != name or name in ("", ".", ".."):
            raise Malformed(f"{index} names the file {name!r}, which is outside its folder", "download the checkpoint again")
    if missing := [name for name in names if not (folder / name).exists()]:
        raise Malformed(f"{index} names {missing[0]}, which is not in {folder}", "download the checkpoint again")
    headers = {folder / name: read_header(folder / name) for name in names}
    held = {file.name: header.tensors for file, header in headers.items()}
    for tensor, name in table.items():
        if tensor not in held[name]:
            raise Malformed(
                f"{index.name} says that {name} holds {tensor!r}, but it does not",
                "the folder mixes two checkpoints: empty it and save or download again",
                path=str(index),
            )
    return headers, whole.name if whole.is_file() and whole.name not in names else None


def require_float(name: str, tensor: StoredTensor) -> None:
    if tensor.dtype not in FLOATS:
        raise Unsupported(
            f"{name!r} in {tensor.file} is {tensor.dtype}; this engine merges bf16, fp16, fp32 and fp64",
            "merge the unquantised original, or use --engine mergekit",
        )


def not_a(wanted: str, ref: str, path: Path, holding: FolderKind) -> NotAModel:
    """The refusal of a folder that holds something else."""
    if holding.kind == "lora":
        holding = FolderKind("lora", "it is a LoRA adapter; name it as base+adapter, with the model that it was trained on")
    elif holding.kind == "full":
        holding = FolderKind("full", "it is a full model")
    return holding.refusal(f"{path} is not {wanted}", "name another folder", ref)


def _together(folder: Path, headers: dict[Path, Header]) -> dict[str, StoredTensor]:
    tensors: dict[str, StoredTensor] = {}
    for file, header in headers.items():
        found = stored_tensors(file, header)
        if twice := next((name for name in found if name in tensors), None):
            raise Malformed(f"{twice!r} is in both {tensors[twice].file.name} and {file.name} of {folder}", "remove stale shards")
        tensors |= found
    return tensors


def _unpacked(tensors: dict[str, StoredTensor], stored: Stored) -> tuple[dict[str, StoredTensor], dict[str, StoredTensor]]:
    """The tensors that a model has, in stored order: packed weights stand where the first of their parts does.

    And those that belong to packed layers without being a part of any weight.
    """
    weights = find_weights(stored)
    for name in weights.packed:
        if is_conv1d(stored.config, name.removesuffix(".weight")):
            raise Unsupported(
                f"{stored.where}: {name} is a Conv1D, stored as (in, out), and its packed form is turned, which is not read here",
                "merge the unquantised model that it was made from",
            )
    found: dict[str, StoredTensor] = {}
    for name, tensor in tensors.items():
        if (weight := weights.replaced.get(name)) is None:
            if name not in weights.dropped:
                found[name] = tensor
        elif weight not in found:
            found[weight] = _packed(weights.packed[weight])
    return found, {name: tensors[name] for name in tensors if name in weights.dropped}


def _packed(packing: Packing) -> StoredTensor:
    first = packing.parts[0]
    return StoredTensor(first.file, first.offset, packing.dtype, packing.shape, math.prod(packing.shape), packing)
