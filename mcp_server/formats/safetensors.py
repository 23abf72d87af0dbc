"""Read and check a safetensors header: names, dtypes, shapes and offsets, without touching a weight.

The file is 8 bytes of little-endian header length N, N bytes of JSON, then the tensors' bytes. Every number in that JSON comes
from somebody else, so each is checked before anything trusts it: a header is refused that is too long, names a tensor twice,
claims a size its shape does not have, leaves holes, overlaps, or points outside the file. No other module parses the format.

Source of the rules: the safetensors format description and its reference implementation (100 MB header, no holes, no overlap).
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import stat
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from itertools import chain
from operator import itemgetter
from pathlib import Path
from typing import Any, Final, NamedTuple

from mcp_server.errors import Malformed, NotFound
from mcp_server.formats.hub.copies import whole_bytes
from mcp_server.schemas.limits import MAX_HEADER_VALUES
from mcp_server.system.guard import open_read
from mcp_server.system.remembered import Remembered

MAX_HEADER_BYTES: Final = 100_000_000
MAX_DIMENSIONS: Final = 16
MAX_ELEMENTS: Final = 1 << 48

DTYPE_BITS: Final[dict[str, int]] = {
    "F64": 64, "F32": 32, "F16": 16, "BF16": 16, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4,
    "I64": 64, "I32": 32, "I16": 16, "I8": 8, "U64": 64, "U32": 32, "U16": 16, "U8": 8, "BOOL": 8, "C64": 64,
}  # fmt: skip

REMEMBERED_BYTES: Final = 1_000_000
"""Longer headers are read again each time they are asked for."""


class TensorInfo(NamedTuple):
    """One tensor: its dtype as the format names it (`BF16`), its shape, and its byte range from the start of the data section.

    A named tuple, because a model may have 100,000 of them and a frozen dataclass takes twice as long to make.
    """

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.end - self.begin


@dataclass(frozen=True, slots=True)
class Header:
    """A checked header. A tensor's bytes lie at `data_start + begin` … `data_start + end` in the file."""

    tensors: dict[str, TensorInfo]
    metadata: dict[str, str]
    data_start: int
    file_bytes: int
    sha256: str


_FIELDS: Final = {"dtype", "shape", "data_offsets"}
_remembered: Remembered[Header] = Remembered()


def read_header(path: str | os.PathLike[str]) -> Header:
    """Parse and check the header of one safetensors file. Raises `NotFound` or `Malformed`, naming file and fault."""
    file = Path(path)
    try:
        if not stat.S_ISREG(file.stat().st_mode) and not file.is_dir():
            raise _broken(file, "it is not a regular file")  # opening a pipe would wait for ever
        there = whole_bytes(file)
        with open_read(file) as stream:
            about = os.fstat(stream.fileno())
            file_bytes = about.st_size if there is None else there
            if (known := _remembered.of(about)) is not None:
                return known
            prefix = stream.read(8)
            if len(prefix) < 8:
                raise _broken(file, f"it has {file_bytes} bytes, too few for a header")
            if prefix == b"version ":
                raise Malformed(f"{file} is a pointer of Git LFS, not the weights", "fetch them: git lfs pull", path=str(file))
            length = int.from_bytes(prefix, "little")
            if length > MAX_HEADER_BYTES:
                raise _broken(file, f"its header claims {length} bytes, the format allows {MAX_HEADER_BYTES}")
            if 8 + length > file_bytes:
                raise _broken(file, f"its header claims {length} bytes, the file has {file_bytes}")
            raw = stream.read(length)
    except FileNotFoundError as missing:
        raise NotFound(f"{file} does not exist", "check the path, or download the checkpoint again") from missing
    except IsADirectoryError as folder:
        raise Malformed(f"{file} is a folder, not a safetensors file", "name a file inside it") from folder
    if len(raw) < length:
        raise _broken(file, f"its header ends after {len(raw)} of {length} bytes")
    tensors, metadata = _parse(file, raw)
    _check_layout(file, tensors, file_bytes - 8 - length)
    header = Header(tensors, metadata, 8 + length, file_bytes, hashlib.sha256(prefix + raw).hexdigest())
    if length <= REMEMBERED_BYTES:
        _remembered.keep(about, header)
    return header


def _parse(file: Path, raw: bytes) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    if not raw.startswith(b"{"):
        raise _broken(file, f"its header starts with {raw[:8]!r}, not with a JSON object")

    values = sum(raw.count(mark) for mark in (b",", b"{", b"["))
    if values > MAX_HEADER_VALUES:
        raise _broken(file, f"its header has some {values:,} values, which exceeds the limit of {MAX_HEADER_VALUES:,}")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
            raise _broken(file, f"its header names {twice!r} twice")
        return found

    try:
        entries = json.loads(raw.decode("utf-8"))
        keys = len(entries) + sum(len(entry) for entry in entries.values() if isinstance(entry, dict))
        if raw.count(b":") != keys:  # every key that was written has a colon: one more, and a name holds it or a key came twice
            entries = json.loads(raw.decode("utf-8"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:  # ValueError: not UTF-8, not JSON, or a number of thousands of digits
        raise _broken(file, f"its header is not JSON ({error})") from error
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise _broken(file, "its __metadata__ is not a table of strings")
    numbers_are_sound = _all_naturals(entries.values())
    return {name: _tensor(file, name, entry, numbers_are_sound) for name, entry in entries.items()}, metadata


def _all_naturals(entries: Collection[Any]) -> bool:
    """Whether every shape and offset is a list of natural numbers, asked of all at once: large headers hold half a million."""
    try:
        lists = [*map(itemgetter("shape"), entries), *map(itemgetter("data_offsets"), entries)]
    except (TypeError, KeyError, IndexError):
        return False
    return set(map(type, lists)) <= {list} and _naturals(list(chain.from_iterable(lists)))


def _tensor(file: Path, name: str, entry: object, numbers_are_sound: bool) -> TensorInfo:
    """`numbers_are_sound`: `_all_naturals` has seen them; without it the one that is not sound is looked for."""
    if not isinstance(entry, dict) or entry.keys() != _FIELDS:
        raise _broken(file, f"the entry of {name!r} is not dtype, shape and data_offsets: {str(entry)[:120]}")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if dtype not in DTYPE_BITS:
        raise _broken(file, f"{name!r} has the unknown dtype {dtype!r}")
    if (
        not (numbers_are_sound or _naturals(shape))
        or len(shape) > MAX_DIMENSIONS
        or (elements := math.prod(shape)) > MAX_ELEMENTS
    ):
        raise _broken(file, f"{name!r} has the impossible shape {str(shape)[:120]}")
    if not (numbers_are_sound or _naturals(offsets)) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise _broken(file, f"{name!r} has the impossible offsets {str(offsets)[:120]}")
    bits = elements * DTYPE_BITS[dtype]
    if bits % 8 or bits // 8 != offsets[1] - offsets[0]:
        raise _broken(file, f"{name!r} is {dtype} {shape}: {bits / 8:g} bytes, but its offsets hold {offsets[1] - offsets[0]}")
    return TensorInfo(dtype, tuple(shape), offsets[0], offsets[1])


def _naturals(value: object) -> bool:
    return (
        isinstance(value, list) and set(map(type, value)) <= {int} and (not value or (min(value) >= 0 and max(value) < 1 << 62))
    )


def _check_layout(file: Path, tensors: dict[str, TensorInfo], data_bytes: int) -> None:
    """The tensors must tile the data section exactly: that excludes overlap, holes, truncation and trailing bytes at once."""
    position = 0
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)):
        if tensor.begin < position:
            raise _broken(file, f"{name!r} starts at byte {tensor.begin}, inside the tensor before it (which ends at {position})")
        if tensor.begin > position:
            raise _broken(file, f"bytes {position} to {tensor.begin}, before {name!r}, belong to no tensor")
        if tensor.end > data_bytes:
            raise _broken(file, f"{name!r} ends at byte {tensor.end}, but only {data_bytes} bytes of data are there (truncated?)")
        position = tensor.end
    if position != data_bytes:
        raise _broken(file, f"{data_bytes - position} bytes after the last tensor belong to no tensor")


def _broken(file: Path, what: str) -> Malformed:
    return Malformed(f"{file} is not a sound safetensors file: {what}", "download or save the checkpoint again", path=str(file))
