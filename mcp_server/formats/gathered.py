"""A tensor whose rows come from others: an embedding or head in the order of another vocabulary. Imports no numpy."""

from __future__ import annotations

import hashlib
from array import array
from dataclasses import dataclass, field
from typing import ClassVar, Final

from mcp_server.formats.quantised.part import Packing, Part
from mcp_server.formats.tensors import StoredTensor

ZERO: Final = -1
"""A row of zeros."""
MEAN: Final = -2
"""The mean of all rows that are not this."""
AVERAGE: Final = -3
"""The mean of several rows: `averages` says which."""


@dataclass(frozen=True, slots=True)
class Gathered(Packing):
    """Row r is row `rows_of[r]` of `tensors[which[r]]`, or what a negative `which[r]` stands for."""

    tensors: tuple[StoredTensor, ...]
    which: array[int] = field(repr=False, hash=False)
    rows_of: array[int] = field(repr=False, hash=False)
    averages: dict[int, tuple[tuple[int, int], ...]] = field(repr=False, hash=False)
    digest: str = ""
    """Of the rows: it stands for them in the fingerprint of a merge."""

    scheme: ClassVar[str] = "gathered rows"

    @property
    def parts(self) -> tuple[Part, ...]:
        return tuple(part for tensor in self.tensors for part in (tensor.packed.parts if tensor.packed else (as_part(tensor),)))

    @property
    def held_bytes(self) -> int:
        held = sum(tensor.packed.held_bytes for tensor in self.tensors if tensor.packed)
        return held + 12 * self.rows + 16 * self.columns


def as_part(tensor: StoredTensor) -> Part:
    """A tensor that is not packed, as the one part that it is stored in."""
    return Part("", tensor.file, tensor.offset, tensor.dtype, tensor.shape, tensor.nbytes)


def gathered(
    own: StoredTensor,
    tensors: tuple[StoredTensor, ...],
    places: list[tuple[int, int]],
    averages: dict[int, tuple[tuple[int, int], ...]],
) -> StoredTensor:
    """`own` with other rows: one of `places` (which, row) for each row of the result."""
    which, rows = array("h", (w for w, _ in places)), array("i", (r for _, r in places))
    digest = hashlib.sha256(which.tobytes() + rows.tobytes() + repr(sorted(averages.items())).encode()).hexdigest()
    shape = (len(places), own.shape[1])
    packing = Gathered(shape, own.dtype, tensors, which, rows, averages, digest)
    return StoredTensor(own.file, own.offset, own.dtype, shape, shape[0] * shape[1], packing)
