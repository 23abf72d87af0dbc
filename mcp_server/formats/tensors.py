"""The tensors of a checkpoint folder: names, shapes, dtypes and files, from the safetensors headers alone.

A sharded folder has `NAME.safetensors.index.json`, which maps each tensor to its file; a whole one has `NAME.safetensors`. The
index is checked against the headers, because a folder that was written twice or copied in part fails only in mid-merge.
"""

from __future__ import annotations

import json
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from mcp_server.errors import Malformed, NotFound
from mcp_server.formats.safetensors import read_header

MAX_JSON_BYTES: Final = 64_000_000
MAX_JSON_VALUES: Final = 6_000_000
"""A tokenizer with a vocabulary of 256,000 has about 2 million; each value parsed may take 60 bytes."""
_SMALL_JSON_BYTES: Final = 16_000_000
DTYPES: Final = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "I64": "int64",
    "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool", "F8_E8M0": "float8_e8m0fnu",
    "U64": "uint64", "U32": "uint32", "U16": "uint16", "C64": "complex64",
}  # fmt: skip
"""The format's name of a dtype → torch's."""
STORED: Final = {name: stored for stored, name in DTYPES.items()}
"""Torch's name of a dtype → the format's."""
FLOATS: Final = ("F64", "F32", "F16", "BF16")


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor as it lies on disk. `dtype` is the format's name (`BF16`)."""

    dtype: str
    shape: tuple[int, ...]
    elements: int
    nbytes: int
    file: str


@dataclass(frozen=True, slots=True)
class StoredTensors:
    """All tensors of a folder, by name, in the order of their files; `shadowed_by` names a stray whole file beside an index."""

    tensors: dict[str, StoredTensor]
    files: tuple[str, ...]
    shadowed_by: str | None = None


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file that somebody else wrote. Raises `NotFound` or `Malformed`."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise Malformed(f"{path} is not a regular file", "download the checkpoint again", path=str(path))
        if status.st_size > MAX_JSON_BYTES:
            raise Malformed(f"{path} has {status.st_size:,} bytes, which exceeds the limit of {MAX_JSON_BYTES:,}", "is it JSON?")
        raw = path.read_bytes()
        if len(raw) > _SMALL_JSON_BYTES and sum(raw.count(mark) for mark in (b",", b"{", b"[")) > MAX_JSON_VALUES:
            raise Malformed(f"{path} has more than {MAX_JSON_VALUES:,} values", "is it the right file?", path=str(path))
        data = json.loads(raw.decode("utf-8"))
    except FileNotFoundError as missing:
        raise NotFound(f"{path} does not exist", "download the checkpoint again") from missing
    except (ValueError, RecursionError) as error:  # ValueError: not UTF-8, not JSON, or a number of thousands of digits
        raise Malformed(f"{path} is not JSON: {str(error)[:120]}", "download or save it again", path=str(path)) from error
    if not isinstance(data, dict):
        raise Malformed(f"{path} holds {type(data).__name__}, not a JSON object", "download or save it again", path=str(path))
    return data


def read_tensors(folder: Path, stem: str = "model") -> StoredTensors:
    """Every tensor of `stem`.safetensors or its shards. Raises `NotFound` without either, `Malformed` when they disagree."""
    whole = folder / f"{stem}.safetensors"
    index = folder / f"{stem}.safetensors.index.json"
    if index.is_file():
        found = _sharded(folder, index)
        stray = whole.name if whole.is_file() and whole.name not in found.files else None
        return StoredTensors(found.tensors, found.files, stray)
    if whole.is_file():
        return StoredTensors(_of_file(whole), (whole.name,))
    raise NotFound(f"{folder} has neither {whole.name} nor {index.name}", "save the checkpoint as safetensors")


def _of_file(path: Path) -> dict[str, StoredTensor]:
    header = read_header(path)
    return {
        name: StoredTensor(info.dtype, info.shape, info.elements, info.nbytes, path.name) for name, info in header.tensors.items()
    }


def _sharded(folder: Path, index: Path) -> StoredTensors:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(v, str) for v in weight_map.values()):
        raise Malformed(f"{index} has no weight_map of tensor names to file names", "download or save the checkpoint again")
    files = tuple(sorted(set(weight_map.values())))
    for name in files:
        if "\0" in name or Path(name).name != name or name in ("", ".", ".."):
            raise Malformed(f"{index} names the file {name!r}, which is outside its folder", "download the checkpoint again")
    present = {name: _of_file(folder / name) for name in files}
    tensors = {}
    for name, file in weight_map.items():
        if name not in present[file]:
            raise Malformed(
                f"{index.name} says that {file} holds {name!r}, but it does not",
                "the folder mixes two checkpoints: empty it and save or download again",
                path=str(index),
            )
        tensors[name] = present[file][name]
    return StoredTensors(tensors, files)
