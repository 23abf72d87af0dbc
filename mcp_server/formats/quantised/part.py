"""What every packed format is described with: its stored parts, and the matrix that they stand for. Imports no numpy.

A description is a frozen value: it takes part in the fingerprint of a merge, and equal descriptions are the same weights.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Final

from mcp_server.errors import Malformed, NotFound
from mcp_server.formats.dtypes import compute_dtype
from mcp_server.formats.hub.copies import is_copy, listing_of
from mcp_server.formats.hub.headers import parts_of
from mcp_server.formats.hub.listing import original_of
from mcp_server.formats.safetensors import Header
from mcp_server.system.guard import open_read

SCALES: Final = ("F32", "BF16", "F16")
AGAIN: Final = "download or save the checkpoint again, or merge the unquantised model that it was made from"


@dataclass(frozen=True, slots=True)
class Part:
    """One stored tensor: `nbytes` bytes at byte `offset` of `file`. `dtype` is the format's name (`U8`)."""

    name: str
    file: Path
    offset: int
    dtype: str
    shape: tuple[int, ...]
    nbytes: int

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    def __str__(self) -> str:
        return f"{self.name} ({self.dtype} {list(self.shape)})"


@dataclass(frozen=True, slots=True)
class Packing(ABC):
    """How one weight is packed. `shape` is the weight's own (out, in); `dtype` is what it is computed in (`BF16`)."""

    shape: tuple[int, ...]
    dtype: str

    scheme: ClassVar[str] = ""

    @property
    @abstractmethod
    def parts(self) -> tuple[Part, ...]:
        """Every stored tensor that the weight is made of."""

    @property
    @abstractmethod
    def held_bytes(self) -> int:
        """Upper bound of what stays in memory while the weight is read: its scales, and codes that lie across the rows."""

    @property
    def kind(self) -> str:
        """The scheme as a person names it."""
        return self.scheme

    @property
    def rows(self) -> int:
        return math.prod(self.shape[:-1])

    @property
    def columns(self) -> int:
        return self.shape[-1]


Found = dict[str, tuple[Packing, tuple[str, ...]]]
"""Weight's name → its packing, and the names of the stored tensors that it replaces."""


@dataclass(frozen=True, slots=True)
class Stored:
    """The tensors of a folder as they lie on disk, and the config beside them."""

    where: str
    parts: dict[str, Part]
    config: dict[str, Any]
    metadata: dict[str, str] = field(default_factory=dict)
    """The `__metadata__` of its files."""
    beside: dict[str, Any] = field(default_factory=dict)
    """quantize_config.json or quant_config.json, which older models have in place of a part of config.json."""

    @classmethod
    def of(cls, where: str, headers: dict[Path, Header], config: dict[str, Any], beside: dict[str, Any] | None = None) -> Stored:
        parts = {
            name: Part(name, file, header.data_start + info.begin, info.dtype, info.shape, info.nbytes)
            for file, header in headers.items()
            for name, info in header.tensors.items()
        }
        metadata = {key: value for header in headers.values() for key, value in header.metadata.items()}
        return cls(where, parts, config, metadata, beside or {})

    @property
    def dtype(self) -> str:
        """What the model is computed in: as config.json says, else bfloat16."""
        return compute_dtype(self.config)

    @property
    def settings(self) -> dict[str, Any]:
        """The quantization_config, or what stands beside it, or an empty table."""
        text = self.config.get("text_config")
        for place in (self.config, text if isinstance(text, dict) else {}):
            for key in ("quantization_config", "compression_config"):
                if isinstance(found := place.get(key), dict):
                    return found
        return self.beside

    def schemes(self) -> list[dict[str, Any]]:
        """What compressed-tensors' config says of weights, for each group of layers."""
        groups = self.settings.get("config_groups")
        named = groups.values() if isinstance(groups, dict) else ()
        return [group["weights"] for group in named if isinstance(group, dict) and isinstance(group.get("weights"), dict)]

    def need(self, name: str, why: str) -> Part:
        """The part of that name. Raises `Malformed` when it is not stored."""
        if name not in self.parts:
            raise Malformed(f"{self.where}: {why}, but {name} is not there", AGAIN)
        return self.parts[name]

    def wrong(self, part: Part, wanted: str) -> Malformed:
        return Malformed(f"{self.where}: {part} should be {wanted}", AGAIN)

    def expect(self, part: Part, dtypes: tuple[str, ...], shape: tuple[int, ...], why: str) -> Part:
        """`part`, if it has one of the dtypes and that shape. Raises `Malformed` with what it should be."""
        if part.dtype not in dtypes or part.shape != shape:
            raise self.wrong(part, f"{' or '.join(dtypes)} {list(shape)}: {why}")
        return part


def read_bytes(part: Part, most: int) -> bytes:
    """The bytes of a small part. Raises `Malformed` when it is larger than `most`, `NotFound` where only headers are here."""
    _require_small(part, most)
    if is_copy(part.file):
        raise _among_the_weights(part)
    with open_read(part.file) as stream:
        stream.seek(part.offset)
        return stream.read(part.nbytes)


def read_each(parts: dict[str, Part], most: int, kind_of: Callable[[Part], object]) -> dict[str, bytes]:
    """The bytes of small parts, by the same keys. Raises as `read_bytes`.

    Of a model of which only headers are here one part of each kind is fetched, and stands for the others of its kind.
    """
    for part in parts.values():
        _require_small(part, most)
    first = next(iter(parts.values()), None)
    if first is None or not is_copy(first.file):
        return {key: read_bytes(part, most) for key, part in parts.items()}
    kinds: dict[object, Part] = {}
    for part in parts.values():
        kinds.setdefault(kind_of(part), part)
    found = parts_of(first.file.parent, [(part.file.name, part.offset, part.nbytes) for part in kinds.values()])
    if found is None:
        raise _among_the_weights(first)
    told = dict(zip(kinds, found, strict=True))
    return {key: told[kind_of(part)] for key, part in parts.items()}


def _require_small(part: Part, most: int) -> None:
    if part.nbytes > most:
        raise Malformed(f"{part} has {part.nbytes} bytes, {most} is the most that it may have", AGAIN)


def _among_the_weights(part: Part) -> NotFound:
    listing = listing_of(part.file.parent)
    original = original_of(listing.hub_id)
    less = f"; or name its original, probably {original} (owner may differ), which loses less" if original else ""
    return NotFound(
        f"how the weights of {listing.hub_id} are packed stands among them, and only its headers were read",
        f"download it first: model-merging fetch {listing.hub_id}{less}",
        hub_id=True,
    )


def ceil(number: int, divisor: int) -> int:
    return -(-number // divisor)
