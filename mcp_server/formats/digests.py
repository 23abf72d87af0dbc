"""What a merge wrote, by digests: BLAKE3 of every tensor as it was written, SHA-256 of every other file.

A tensor is digested in pieces, in whatever order threads finish them, while its bytes are in memory: BLAKE3 over the digests of
the pieces, in order. BLAKE3 is a cryptographic hash that costs less than half of SHA-256 by the processor's own instructions.
Records of earlier versions hold SHA-256 in the same form, and are still compared.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from blake3 import blake3
from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from mcp_server.formats.companions import CARD_FILE, PROVENANCE_FILE, RECIPE_FILE, companions
from mcp_server.schemas.base import Frozen
from mcp_server.system.guard import open_read
from mcp_server.system.hashes import sha256_of

LATER: Final = frozenset({PROVENANCE_FILE, RECIPE_FILE, CARD_FILE})
"""The record, the recipe and the card beside it, which are written last."""
_WEIGHTS: Final = ".safetensors"


class TensorDigest(Frozen):
    """A digest over the digests, in order, of a tensor's bytes in pieces of `chunk_bytes` (the last may be shorter)."""

    chunk_bytes: int
    blake3: str | None = Field(default=None, description="hexadecimal")
    sha256: str | None = Field(default=None, description="instead, in records of earlier versions")

    @model_validator(mode="after")
    def _has_one(self) -> TensorDigest:
        if (self.blake3 is None) == (self.sha256 is None):
            raise ValueError("has to name one digest, blake3 or sha256")
        return self

    @model_serializer(mode="wrap")
    def _without_the_other(self, whole: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {key: value for key, value in whole(self).items() if value is not None}

    def matches(self, file: Path, offset: int, nbytes: int) -> bool:
        """Whether bytes as they are stored now have this digest."""
        hash_, recorded = (blake3, self.blake3) if self.blake3 is not None else (hashlib.sha256, self.sha256)
        pieces = []
        with open_read(file) as stream:
            stream.seek(offset)
            while nbytes > 0 and (piece := stream.read(min(self.chunk_bytes, nbytes))):
                pieces.append(hash_(piece).digest())
                nbytes -= len(piece)
        return bool(hash_(b"".join(pieces)).hexdigest() == recorded)


class Digests(Frozen):
    """What was written, as it was written: made while the bytes were in memory, before they went to disk."""

    tensors: dict[str, TensorDigest] = Field(default_factory=dict, description="tensor name → digest of its stored bytes")
    files: dict[str, str] = Field(
        default_factory=dict, description="file, by its path in the folder → SHA-256; weight files only where tensors have none"
    )


def piece_digest(piece: Any) -> bytes:
    """Of one piece of a tensor: anything with a contiguous buffer."""
    return bytes(blake3(memoryview(piece).cast("B")).digest())


def digest_of(pieces: Iterable[bytes], chunk_bytes: int) -> dict[str, Any]:
    """A `TensorDigest`, dumped, from the digests of a tensor's pieces, in order."""
    return {"chunk_bytes": chunk_bytes, "blake3": blake3(b"".join(pieces)).hexdigest()}


def digests_of(folder: Path, tensors: dict[str, dict[str, Any] | None] | None = None) -> Digests:
    """What a folder holds now. `tensors` were digested while they were written; without them every weight file is read once."""
    known = {name: TensorDigest.model_validate(found) for name, found in (tensors or {}).items() if found}
    names = {path.name for path in folder.iterdir() if path.is_file() and path.name not in LATER}
    names |= {name for name in companions(folder) if "/" in name}
    small = [name for name in sorted(names) if not known or not name.endswith(_WEIGHTS)]
    return Digests(tensors=known, files={name: sha256_of(folder / name) for name in small})
