"""A checkpoint on disk as the engine reads it: where every tensor's bytes lie. Headers only, never a weight."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from mcp_server.errors import Malformed, NotAModel, NotFound, Unsupported
from mcp_server.formats.quantised import Packing, Stored, find_weights
from mcp_server.formats.refs import cached_snapshot, is_hub_id, split_revision
from mcp_server.formats.safetensors import DTYPE_BITS, Header, read_header
from mcp_server.formats.tensor_names import without_wrappers
from mcp_server.formats.tensors import read_json
from mcp_server.system.paths import expanded

FLOATS: Final = {"BF16": "bfloat16", "F16": "float16", "F32": "float32", "F64": "float64"}
ITEM_BYTES: Final = {dtype: bits // 8 for dtype, bits in DTYPE_BITS.items() if bits >= 8}


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """`count` elements of `dtype` at byte `offset` of `file`.

    With `packed` they are codes of another format, that stand for `count` elements: `shape` and `dtype` are those of the numbers.
    """

    file: Path
    offset: int
    dtype: str
    shape: tuple[int, ...]
    count: int
    packed: Packing | None = None

    @property
    def nbytes(self) -> int:
        if self.packed is not None:
            return sum(part.nbytes for part in self.packed.parts)
        return self.count * ITEM_BYTES[self.dtype]


@dataclass(frozen=True)
class Checkpoint:
    """One model folder. `headers` holds the header of each shard, by path; `wrapper` is what was taken out of stored names."""

    folder: Path
    config: dict[str, Any]
    tensors: dict[str, StoredTensor]
    headers: dict[Path, Header]
    wrapper: str = ""


def locate(ref: str) -> Path:
    """The folder of a model: a path, or a hub id (`name@revision`) that is in the local hub cache."""
    folder = expanded(ref)
    if folder.is_dir():
        return folder.resolve()
    name, revision = split_revision(ref, Path.cwd())
    if is_hub_id(name) and (snapshot := cached_snapshot(name, revision)):
        return snapshot
    raise NotFound(
        f"{ref} is neither a folder nor a model in the local hub cache", f"check the path, or run `hf download {name}` first"
    )


def open_checkpoint(ref: str) -> Checkpoint:
    """Read config, index and headers of a model. Pickle is refused by name, and packed weights whose format is not read."""
    folder = locate(ref)
    config = read_json(folder / "config.json")
    headers = {file: read_header(file) for file in shards(folder)}
    tensors: dict[str, StoredTensor] = {}
    for file, header in headers.items():
        for name, info in header.tensors.items():
            if name in tensors:
                raise Malformed(
                    f"{name!r} is in both {tensors[name].file.name} and {file.name} of {folder}", "remove stale shards"
                )
            tensors[name] = StoredTensor(file, header.data_start + info.begin, info.dtype, info.shape, info.elements)
    unpacked = _unpacked(tensors, Stored.of(str(folder), headers, config))
    names, wrapper = without_wrappers(unpacked)
    return Checkpoint(folder, config, {names[name]: tensor for name, tensor in unpacked.items()}, headers, wrapper)


def _unpacked(tensors: dict[str, StoredTensor], stored: Stored) -> dict[str, StoredTensor]:
    """The tensors that a model has, in stored order: packed weights stand where the first of their parts does."""
    weights = find_weights(stored)
    found: dict[str, StoredTensor] = {}
    for name, tensor in tensors.items():
        if (weight := weights.replaced.get(name)) is None:
            if name not in weights.dropped:
                found[name] = tensor
        elif weight not in found:
            packed = weights.packed[weight]
            found[weight] = StoredTensor(tensor.file, tensor.offset, packed.dtype, packed.shape, math.prod(packed.shape), packed)
    return found


def shards(folder: Path) -> list[Path]:
    """The safetensors files of a model folder. Raises when an index names a shard that is not there."""
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if index.is_file():
        table = read_json(index).get("weight_map")
        if not isinstance(table, dict) or not all(isinstance(name, str) for name in table.values()):
            raise Malformed(f"{index} has no weight_map from tensor to file", "download or save the checkpoint again")
        names = sorted(set(table.values()))
        if unsafe := [name for name in names if name != os.path.basename(name)]:  # noqa: PTH119
            raise Malformed(f"{index} names {unsafe[0]!r}, which is outside its folder", "do not use this checkpoint")
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise Malformed(f"{index} names {missing[0]}, which is not in {folder}", "download the checkpoint again")
        found = [folder / name for name in names]
        here = {tensor for file in found for tensor in read_header(file).tensors}
        if absent := sorted(set(table) - here):
            raise Malformed(f"{index} names {absent[0]!r}, which no shard holds", "download or save the checkpoint again")
        return found
    if single.is_file():
        return [single]
    if pickled := sorted(folder.glob("*.bin")) + sorted(folder.glob("*.pt")):
        raise NotAModel(
            f"{folder} holds pickle weights ({pickled[0].name}), which can run code when they are read",
            'if you trust it: python -c "from transformers import AutoModelForCausalLM as M; '
            f"M.from_pretrained('{folder}', dtype='auto').save_pretrained('{folder}-safetensors')\"",
        )
    if gguf := sorted(folder.glob("*.gguf")):
        raise NotAModel(f"{folder} holds GGUF weights ({gguf[0].name})", "merge the original checkpoint, convert the result")
    raise NotAModel(f"{folder} holds no model.safetensors", "name a folder with safetensors weights")


def require_float(name: str, tensor: StoredTensor) -> None:
    if tensor.dtype not in FLOATS:
        raise Unsupported(
            f"{name!r} in {tensor.file} is {tensor.dtype}; this engine merges bf16, fp16, fp32 and fp64",
            "merge the unquantised original, or use --engine mergekit",
        )
