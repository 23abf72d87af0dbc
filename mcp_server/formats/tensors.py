"""A stored tensor: its dtype, its shape, and where its bytes lie. And the JSON files that lie beside it.

The tables of dtypes stand here: safetensors' names, torch's, and the bytes of one element.
"""

from __future__ import annotations

import json
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from mcp_server.errors import Malformed, NotFound
from mcp_server.formats.quantised.part import Packing
from mcp_server.formats.safetensors import DTYPE_BITS, Header
from mcp_server.schemas.limits import MAX_JSON_BYTES, MAX_JSON_VALUES
from mcp_server.system.guard import open_read

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
FLOATS: Final = {dtype: DTYPES[dtype] for dtype in ("BF16", "F16", "F32", "F64")}
"""The dtypes that are merged, and torch's names of them."""
ITEM_BYTES: Final = {dtype: bits // 8 for dtype, bits in DTYPE_BITS.items() if bits >= 8}
"""The format's name of a dtype → the bytes of one element."""
DTYPE_BYTES: Final = {name: ITEM_BYTES[stored] for stored, name in DTYPES.items()}
"""Torch's name of a dtype → the bytes of one element."""


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """`count` elements of `dtype` (`BF16`) at byte `offset` of `file`.

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
        """Bytes on disk."""
        if self.packed is not None:
            return sum(part.nbytes for part in self.packed.parts)
        return self.count * DTYPE_BITS[self.dtype] // 8

    @property
    def number_bytes(self) -> int:
        """Bytes of the numbers: more than `nbytes` for a packed tensor."""
        return self.count * DTYPE_BITS[self.dtype] // 8


def stored_tensors(file: Path, header: Header) -> dict[str, StoredTensor]:
    """The tensors of one safetensors file, by name, in the order of its header."""
    return {
        name: StoredTensor(file, header.data_start + info.begin, info.dtype, info.shape, info.elements)
        for name, info in header.tensors.items()
    }


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file that somebody else wrote. Raises `NotFound` or `Malformed`."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise Malformed(f"{path} is not a regular file", "download the checkpoint again", path=str(path))
        if status.st_size > MAX_JSON_BYTES:
            raise Malformed(f"{path} has {status.st_size:,} bytes, which exceeds the limit of {MAX_JSON_BYTES:,}", "is it JSON?")
        with open_read(path) as stream:
            raw = stream.read()
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
