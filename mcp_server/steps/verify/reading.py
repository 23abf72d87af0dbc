"""Weights as float32 arrays, in blocks of rows. numpy is imported on first use; nothing here needs numba or torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from mcp_server.formats.checkpoint import ITEM_BYTES, StoredTensor

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

BLOCK_ELEMENTS: Final = 1 << 20
SAMPLE_ELEMENTS: Final = 16_384
SAMPLES: Final = 3


def rows_of(tensor: StoredTensor) -> tuple[int, int]:
    """(rows, elements per row); a vector or scalar is one row."""
    if len(tensor.shape) < 2:
        return 1, tensor.count
    return tensor.shape[0], tensor.count // max(tensor.shape[0], 1)


def spans(tensor: StoredTensor, *, full: bool) -> Iterator[tuple[int, int]]:
    """(first, last) row ranges: all of them in blocks, or three small ones from start, middle and end."""
    rows, width = rows_of(tensor)
    if not tensor.count:
        return
    step = max(1, (BLOCK_ELEMENTS if full else SAMPLE_ELEMENTS) // max(width, 1))
    if full or rows <= step * SAMPLES:
        yield from ((first, min(first + step, rows)) for first in range(0, rows, step))
        return
    for number in range(SAMPLES):
        first = number * (rows - step) // (SAMPLES - 1)
        yield first, first + step


def raw_rows(tensor: StoredTensor, first: int, last: int) -> bytes:
    """The bytes of rows `first` to `last` (exclusive)."""
    _, width = rows_of(tensor)
    size = width * ITEM_BYTES[tensor.dtype]
    with tensor.file.open("rb") as file:
        file.seek(tensor.offset + first * size)
        return file.read((last - first) * size)


def read_rows(tensor: StoredTensor, first: int, last: int) -> Array:
    """Rows `first` to `last` (exclusive) as float32, shape (rows, width)."""
    import numpy as np

    if tensor.packed is not None:
        from mcp_server.steps.verify.packed import unpacked_rows

        width = rows_of(tensor)[1] // tensor.shape[-1]
        values: Array = unpacked_rows(tensor.packed, first * width, last * width)
        return values.reshape(last - first, -1)
    raw = raw_rows(tensor, first, last)
    _, width = rows_of(tensor)
    if tensor.dtype == "BF16":
        bits: Array = np.frombuffer(raw, dtype=np.uint16).astype(np.uint32)
        values = (bits << np.uint32(16)).view(np.float32)
    else:
        values = np.frombuffer(raw, dtype=np.float16 if tensor.dtype == "F16" else np.float32).astype(np.float32)
    return values.reshape(last - first, width)


def count_nonfinite(tensor: StoredTensor, first: int, last: int) -> int:
    """How many values of the rows are infinite or not a number, read off the exponent bits."""
    import numpy as np

    raw = raw_rows(tensor, first, last)
    kinds: dict[str, tuple[type, int]] = {"BF16": (np.uint16, 0x7F80), "F16": (np.uint16, 0x7C00), "F32": (np.uint32, 0x7F800000)}
    kind, mask = kinds[tensor.dtype]
    bits: Array = np.frombuffer(raw, dtype=kind)
    return int(np.count_nonzero((bits & kind(mask)) == kind(mask)))


def same_values(one: StoredTensor, other: StoredTensor, *, full: bool) -> bool:
    """Whether two tensors of one shape hold the same numbers, in samples or everywhere."""
    import numpy as np

    return all(np.array_equal(read_rows(one, *span), read_rows(other, *span)) for span in spans(one, full=full))
