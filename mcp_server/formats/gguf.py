"""Read and check the header of a GGUF file: metadata, tensor names, types, shapes and offsets, without touching a weight.

The file is `GGUF`, a version, the numbers of tensors and of metadata entries, the entries, the tensors' descriptions (dimensions
fastest first, the offset from the start of the data), padding, data. Arrays of the metadata (vocabularies) are passed over. A
model may be split over files NAME-00001-of-00003.gguf.

Source: the GGUF specification (ggml, docs/gguf.md), versions 2 and 3, little-endian.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

from mcp_server.errors import Malformed, NotFound, Unsupported
from mcp_server.formats.hub.copies import is_copy, listing_of
from mcp_server.formats.quantised.ggml import TYPES, UNREAD
from mcp_server.formats.safetensors import MAX_ELEMENTS, Header, TensorInfo
from mcp_server.system.guard import open_read
from mcp_server.system.remembered import Remembered

MAX_ENTRIES: Final = 100_000
MAX_ARRAY: Final = 4_000_000
MAX_TEXT: Final = 16_000_000
MAX_HEADER_BYTES: Final = 400_000_000
_NUMBERS: Final = {
    0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d",
}  # fmt: skip
_TEXT, _ARRAY = 8, 9
_TOKENS: Final = "tokenizer.ggml.tokens"
_SPLIT: Final = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf$")
_AGAIN: Final = "download the file again"


@dataclass(frozen=True, slots=True)
class Gguf:
    """One file. `header` describes its tensors as bytes, by GGUF's names; `types` and `shapes` (rows first) say what they hold.

    `metadata` leaves arrays out; its entries end at byte `metadata_end`.
    """

    file: Path
    header: Header
    metadata: dict[str, Any]
    types: dict[str, str]
    shapes: dict[str, tuple[int, ...]]
    metadata_end: int = 0


@dataclass(frozen=True, slots=True)
class Beginning:
    """What the first bytes of a file say: the number of its tensors, and the metadata before its vocabulary.

    `vocabulary` is the number of tokens, where its list begins within these bytes.
    """

    tensors: int
    metadata: dict[str, Any]
    vocabulary: int | None = None


_remembered: Remembered[Gguf] = Remembered()


def gguf_files(path: Path) -> list[Path]:
    """The files of one GGUF model: a file and what it was split into, or the only model of a folder. Empty when there is none.

    Raises `Malformed` for a split file whose other parts are missing, and for a folder that holds several models.
    """
    if path.is_dir():
        found = sorted(path.glob("*.gguf"))
        models = {match["stem"] if (match := _SPLIT.match(file.name)) else file.name for file in found}
        if len(models) > 1:
            raise Malformed(f"{path} holds several GGUF models: {', '.join(sorted(models)[:4])}", "name the file that you mean")
        if not found:
            return []
        path = found[0]
    if path.suffix != ".gguf" or not path.is_file():
        return []
    match = _SPLIT.match(path.name)
    if match is None:
        return [path]
    count = int(match["count"])
    parts = [path.with_name(f"{match['stem']}-{number:05}-of-{match['count']}.gguf") for number in range(1, count + 1)]
    if missing := [part.name for part in parts if not part.is_file()]:
        held = f"{path.parent} holds {count - len(missing)} of the {count} parts of {match['stem']}"
        raise Malformed(held, f"add {missing[0]}")
    return parts


def read_gguf(file: Path) -> Gguf:
    """Parse and check one file's header. Raises `NotFound`, `Malformed`, or `Unsupported` for a big-endian or unknown version."""
    if is_copy(file):
        hub_id = listing_of(file.parent).hub_id
        what = f"of {hub_id} only the beginning of its GGUF header is here"
        raise NotFound(what, f"download it first: model-merging fetch {hub_id}", hub_id=True)
    try:
        with open_read(file) as stream:
            about = os.fstat(stream.fileno())
            if (known := _remembered.of(about)) is not None:
                return known
            found = _read(file, stream, about.st_size)
    except FileNotFoundError as missing:
        raise NotFound(f"{file} does not exist", "check the path, or download the file again") from missing
    _remembered.keep(about, found)
    return found


def read_beginning(file: Path) -> Beginning:
    """As much of a header as stands in the first bytes of a file, such as a copy of them holds. Raises as `read_gguf`."""
    with open_read(file) as stream:
        cursor = _Cursor(file, stream, os.fstat(stream.fileno()).st_size)
        tensors, entries = _counts(file, cursor)
        metadata: dict[str, Any] = {}
        for _ in range(entries):
            try:
                name, kind = cursor.text(), cursor.number("<I")
                if name == _TOKENS and kind == _ARRAY:
                    _, count = cursor.number("<I"), cursor.number("<Q")
                    return Beginning(tensors, metadata, count if count <= MAX_ARRAY else None)
                value = cursor.value(kind)
            except Malformed:
                break  # the rest is not here
            if value is not None:
                metadata[name] = value
    return Beginning(tensors, metadata)


class _Cursor:
    """Reads what a header is made of; every length is checked against what is left of the file."""

    def __init__(self, file: Path, stream: BinaryIO, size: int) -> None:
        self.file, self.stream, self.size = file, stream, min(size, MAX_HEADER_BYTES)

    def bytes(self, count: int) -> bytes:
        if count > self.size - self.stream.tell():
            raise _broken(self.file, f"its header ends beyond the file's {self.size} bytes")
        return self.stream.read(count)

    def number(self, code: str) -> Any:
        return struct.unpack(code, self.bytes(struct.calcsize(code)))[0]

    def text(self) -> str:
        length = self.number("<Q")
        if length > MAX_TEXT:
            raise _broken(self.file, f"a text of its header claims {length} bytes")
        return self.bytes(length).decode("utf-8", "replace")

    def value(self, kind: int, depth: int = 0) -> Any:
        if kind in _NUMBERS:
            return self.number(_NUMBERS[kind])
        if kind == _TEXT:
            return self.text()
        if kind != _ARRAY or depth > 2:
            raise _broken(self.file, f"its metadata holds a value of type {kind}, which is not known")
        inner, count = self.number("<I"), self.number("<Q")
        if count > MAX_ARRAY:
            raise _broken(self.file, f"its metadata holds an array of {count} values; {MAX_ARRAY} is the most that is read")
        if inner in _NUMBERS:
            self.bytes(count * struct.calcsize(_NUMBERS[inner]))
        else:
            for _ in range(count):
                if inner == _TEXT:
                    self.bytes(min(self.number("<Q"), self.size))
                else:
                    self.value(inner, depth + 1)
        return None


def _read(file: Path, stream: BinaryIO, size: int) -> Gguf:
    cursor = _Cursor(file, stream, size)
    tensors, entries = _counts(file, cursor)
    metadata = {}
    for _ in range(entries):
        name = cursor.text()
        if (value := cursor.value(cursor.number("<I"))) is not None:
            metadata[name] = value
    metadata_end = stream.tell()
    described = [_described(cursor) for _ in range(tensors)]
    alignment = metadata.get("general.alignment", 32)
    if type(alignment) is not int or alignment <= 0 or alignment % 8:
        raise _broken(file, f"its alignment is {alignment!r}")
    end = stream.tell()
    start = -(-end // alignment) * alignment
    types, shapes, infos = {}, {}, {}
    for name, shape, number, offset in described:
        if number not in TYPES:
            raise _unread(file, name, number)
        if name in infos:
            raise _broken(file, f"its header names {name!r} twice")
        kind, per, wide = TYPES[number]
        count = math.prod(shape)
        if not shape or count > MAX_ELEMENTS or min(shape) < 1 or shape[-1] % per:
            raise _broken(file, f"{name!r} has the impossible shape {list(shape)} for {kind}")
        nbytes = count // per * wide
        if offset % alignment or start + offset + nbytes > size:
            raise _broken(file, f"{name!r} lies at bytes {start + offset} to {start + offset + nbytes}, the file has {size}")
        types[name], shapes[name] = kind, shape
        infos[name] = TensorInfo("U8", (nbytes,), offset, offset + nbytes)
    _apart(file, infos)
    stream.seek(0)
    digest = hashlib.sha256(stream.read(end)).hexdigest()
    return Gguf(file, Header(infos, {}, start, size, digest), metadata, types, shapes, metadata_end)


def _counts(file: Path, cursor: _Cursor) -> tuple[int, int]:
    """Numbers of tensors and of metadata entries. Raises for a file that is not read here."""
    magic = cursor.stream.read(4)
    if magic != b"GGUF":
        raise _broken(file, f"it starts with {magic!r}, not with b'GGUF'")
    version = cursor.number("<I")
    if version not in (2, 3):
        said = "it is big-endian" if version in (2 << 24, 3 << 24) else f"it has version {version}"
        raise Unsupported(f"{file} is a GGUF that is not read here: {said}", "convert it again with a current llama.cpp")
    tensors, entries = cursor.number("<Q"), cursor.number("<Q")
    if tensors > MAX_ENTRIES or entries > MAX_ENTRIES:
        raise _broken(file, f"it claims {tensors} tensors and {entries} entries; {MAX_ENTRIES} is the most that is read")
    return tensors, entries


def _unread(file: Path, name: str, number: int) -> Unsupported:
    kind = f"{UNREAD[number]} (type {number})" if number in UNREAD else f"type {number}, which is unknown here"
    step = "convert the original again, to a type that is read (docs/packed.md), with a current llama.cpp"
    return Unsupported(f"{file}: {name!r} is stored as ggml's {kind}, which is not read", step)


def _described(cursor: _Cursor) -> tuple[str, tuple[int, ...], int, int]:
    name, dimensions = cursor.text(), cursor.number("<I")
    if dimensions > 4:
        raise _broken(cursor.file, f"{name[:80]!r} has {dimensions} dimensions")
    shape = tuple(cursor.number("<Q") for _ in range(dimensions))
    return name, shape[::-1], cursor.number("<I"), cursor.number("<Q")


def _apart(file: Path, infos: dict[str, TensorInfo]) -> None:
    position = 0
    for name, info in sorted(infos.items(), key=lambda item: item[1].begin):
        if info.begin < position:
            raise _broken(file, f"{name!r} starts inside the tensor before it")
        position = info.end


def _broken(file: Path, what: str) -> Malformed:
    return Malformed(f"{file} is not a sound GGUF file: {what}", _AGAIN, path=str(file))
