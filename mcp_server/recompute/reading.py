"""Stored weights as float64, in blocks of rows, read with plain numpy: nothing here is shared with the engine that wrote them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from mcp_server.formats.tensors import StoredTensor
from mcp_server.system.guard import open_read

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

BLOCK_ELEMENTS: Final = 1 << 20
SAMPLE_ELEMENTS: Final = 16_384
SAMPLES: Final = 3
_PLAIN: Final = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1",
    "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "u1", "BOOL": "u1",
}  # fmt: skip
_WIDENED: Final = {"BF16": "<u2", "F8_E5M2": "u1", "F8_E4M3": "u1", "F8_E8M0": "u1"}
MANTISSA: Final = {"F64": 52, "F32": 23, "F16": 10, "BF16": 7, "F8_E4M3": 3, "F8_E5M2": 2}
"""Stored bits after the point: a value in [1, 2) is rounded to a multiple of 2 to the minus this."""
SMALLEST_EXPONENT: Final = {"F64": -1022, "F32": -126, "F16": -14, "BF16": -126, "F8_E4M3": -6, "F8_E5M2": -14}


def readable(dtype: str) -> bool:
    """Whether a safetensors dtype holds numbers one by one; packed and complex ones do not, here."""
    return dtype in _PLAIN or dtype in _WIDENED


def is_float(dtype: str) -> bool:
    return dtype in MANTISSA


def item_bytes(dtype: str) -> int:
    return int((_PLAIN.get(dtype) or _WIDENED[dtype])[-1])


def rows_of(shape: tuple[int, ...]) -> tuple[int, int]:
    """(rows, elements per row); a vector or scalar is one row."""
    if len(shape) < 2:
        return 1, math.prod(shape)
    return shape[0], math.prod(shape[1:])


def spans(shape: tuple[int, ...], *, full: bool) -> Iterator[tuple[int, int]]:
    """(first, last) row ranges: all of them in blocks, or three small ones from start, middle and end."""
    rows, width = rows_of(shape)
    if not rows * width:
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
    size = rows_of(tensor.shape)[1] * item_bytes(tensor.dtype)
    with open_read(tensor.file) as file:
        file.seek(tensor.offset + first * size)
        return file.read((last - first) * size)


def read_rows(tensor: StoredTensor, first: int, last: int) -> Array:
    """Rows `first` to `last` (exclusive) as float64, shape (rows, width). Exact but for integers beyond 2 to the 53."""
    import numpy as np

    if tensor.packed is not None:
        from mcp_server.recompute.packed import unpacked_rows

        width = math.prod(tensor.shape[1:-1])
        unpacked: Array = unpacked_rows(tensor.packed, first * width, last * width).astype(np.float64)
        return unpacked.reshape(last - first, -1)
    raw = raw_rows(tensor, first, last)
    if tensor.dtype in _PLAIN:
        values = np.frombuffer(raw, dtype=_PLAIN[tensor.dtype]).astype(np.float64)
    else:
        values = _widened(np.frombuffer(raw, dtype=_WIDENED[tensor.dtype]), tensor.dtype)
    return values.reshape(last - first, -1)


def _widened(codes: Array, dtype: str) -> Array:
    import numpy as np

    if dtype == "BF16":
        return (codes.astype(np.uint32) << np.uint32(16)).view(np.float32).astype(np.float64)
    if dtype == "F8_E5M2":
        return (codes.astype(np.uint16) << np.uint16(8)).view(np.float16).astype(np.float64)
    if dtype == "F8_E8M0":
        return np.where(codes == 255, np.nan, np.exp2(codes.astype(np.float64) - 127))
    sign = np.where(codes & 0x80, -1.0, 1.0)
    exponent, fraction = ((codes >> 3) & 15).astype(np.float64), (codes & 7) / 8.0
    magnitude = np.where(exponent == 0, fraction * 2.0**-6, (1 + fraction) * np.exp2(exponent - 7))
    values: Array = sign * np.where((codes & 0x7F) == 0x7F, np.nan, magnitude)
    return values


def unit(values: Array, dtype: str) -> Array:
    """The distance between neighbours of a dtype at each value: an ulp."""
    import numpy as np

    size = np.maximum(np.abs(values), 2.0 ** SMALLEST_EXPONENT[dtype])
    step: Array = np.exp2(np.floor(np.log2(size)) - MANTISSA[dtype])
    return step


def rounded(values: Array, dtype: str) -> Array:
    """float64 values rounded once to a float dtype, ties to even."""
    import numpy as np

    if dtype == "F64":
        return values
    if dtype in ("F32", "F16"):
        with np.errstate(over="ignore"):
            return values.astype(_PLAIN[dtype]).astype(np.float64)
    step = unit(values, dtype)
    return np.rint(values / step) * step


def count_nonfinite(tensor: StoredTensor, first: int, last: int) -> int:
    """How many values of the rows are infinite or not a number."""
    import numpy as np

    return int(np.count_nonzero(~np.isfinite(read_rows(tensor, first, last))))


def same_values(one: StoredTensor, other: StoredTensor, *, full: bool) -> bool:
    """Whether two tensors of one shape hold the same numbers, in samples or everywhere."""
    import numpy as np

    return all(np.array_equal(read_rows(one, *span), read_rows(other, *span)) for span in spans(one.shape, full=full))
