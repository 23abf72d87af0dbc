"""A merge that is stored in FP8: how far values may be off, whether scales fit their blocks, and whether what no source changes
is stored as it was.

A code is the nearest E4M3 number to value ÷ scale, so a value may be off by half the distance of such numbers at the scale of its
block. A scale that is too large would let any value pass; so in a block that was quantised anew, scale = max|w| ÷ 448 makes the
largest code 448 (224 or more where the scale is a power of two). A block in which no value changed has the codes and the scale of
the model that it is stored like.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from mcp_server.formats.quantised.scaled import FLOAT8, Scaled
from mcp_server.formats.tensors import StoredTensor
from mcp_server.recompute.inputs import Made, Span
from mcp_server.recompute.reading import rows_of, spans, unit

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

LARGEST: Final = {"F8_E4M3": 448.0, "F8_E5M2": 57344.0}
MOST_ELEMENTS: Final = 1 << 21
"""A whole block of rows is looked at, beside the samples, up to this size."""
_SAME: Final = 2.0**-45
"""Sums in float64 of equal numbers are this close."""


def form_of(stored: StoredTensor) -> Scaled | None:
    """How a tensor is stored in FP8; None where it is not."""
    packed = stored.packed
    return packed if isinstance(packed, Scaled) and packed.codes.dtype in FLOAT8 else None


@dataclass(frozen=True)
class Fp8:
    """One tensor of the output. `twin`: the same tensor of a model of the merge, stored in blocks of the same size, if any."""

    form: Scaled
    twin: Scaled | None
    ours: bool

    @classmethod
    def of(cls, made: Made, stored: StoredTensor, *, ours: bool) -> Fp8 | None:
        """None for a tensor that is not stored in FP8."""
        if (form := form_of(stored)) is None:
            return None
        values = [*([made.base] if made.base is not None else []), *(operand.value for operand in made.operands)]
        known = [found for value in values if (found := form_of(value.stored)) is not None and found.shape == form.shape]
        alike = [found for found in known if (found.block, found.scale.dtype) == (form.block, form.scale.dtype)]
        return cls(form, next(iter(alike), None), ours)

    def spans(self, *, full: bool) -> Iterator[Span]:
        """As for every tensor; when sampling, also one whole block of rows in the middle, where that is not too large."""
        high, (rows, width) = self.form.block[0], rows_of(self.form.shape)
        plain = list(spans(self.form.shape, full=full))
        yield from plain
        if sum(last - first for first, last in plain) < rows and len(self.form.shape) == 2 and high * width <= MOST_ELEMENTS:
            first = rows // high // 2 * high
            yield first, min(rows, first + high)

    def half_step(self, expected: Array, span: Span) -> Array:
        """Half of the distance between codes at each value."""
        import numpy as np

        from mcp_server.recompute.packed import scales_of

        scale = np.abs(scales_of(self.form, *self._lines(span))).reshape(expected.shape)
        safe = np.where(scale > 0, scale, 1.0)
        parts = np.minimum(np.abs(expected) / safe, LARGEST[self.form.codes.dtype])
        step: Array = 0.501 * unit(parts, self.form.codes.dtype) * scale
        return step

    def fault(self, expected: Array, span: Span) -> str:
        """What is wrong with how these rows are stored, in words; '' when nothing is, or another program wrote them."""
        if not self.ours:
            return ""
        first, last = self._lines(span)
        expected = expected.reshape(last - first, -1)
        for begin, end in self._bands(first, last):
            if (end - begin) * self.form.columns > 2 * MOST_ELEMENTS:
                continue
            inside = expected[begin - first : end - first] if first <= begin and end <= last else None
            if said := self._block_rows(begin, end, inside):
                return said
        return ""

    def _block_rows(self, begin: int, end: int, expected: Array | None) -> str:
        """One row of blocks, whose rows are `begin` … `end`; `expected` where all of them were computed."""
        import numpy as np

        from mcp_server.recompute.packed import codes_of, scales_of

        codes, scale = codes_of(self.form, begin, end), scales_of(self.form, begin, end)
        values = np.abs(codes_of(self.form, begin, end, numbers=True))
        if self.twin is not None:
            before, then = codes_of(self.twin, begin, end), scales_of(self.twin, begin, end)
            meant = codes_of(self.twin, begin, end, numbers=True) * then
        wide = self.form.block[1]
        for left in range(0, self.form.columns, wide):
            cut = np.s_[:, left : left + wide]
            kept = self.twin is not None and np.array_equal(codes[cut], before[cut]) and np.array_equal(scale[cut], then[cut])
            if kept:
                continue
            at = f"the block of rows {begin} to {end - 1}, columns {left} to {min(left + wide, self.form.columns) - 1}"
            if self.twin is not None and expected is not None:
                same = np.abs(expected[cut] - meant[cut]) <= _SAME * np.abs(meant[cut])
                if same.all():
                    return f"is not stored as before in {at}, which no source changes"
            size, factor = float(np.max(values[cut], initial=0.0)), float(scale[0, left])
            power = np.frexp(factor)[0] == 0.5
            if size < (224.0 if power else 448.0) and not (size == 0 and (expected is None or not expected[cut].any())):
                return f"has a scale that does not fit {at}: the largest code there is {size:g} of 448"
        return ""

    def _lines(self, span: Span) -> Span:
        """Rows of the first dimension as rows of the last."""
        inner = 1
        for size in self.form.shape[1:-1]:
            inner *= size
        return span[0] * inner, span[1] * inner

    def _bands(self, first: int, last: int) -> Iterator[Span]:
        """The rows of blocks that rows `first` … `last` touch; none crosses from one matrix to the next."""
        height, high = self.form.shape[-2], self.form.block[0]
        begin = first // height * height + first % height // high * high
        while begin < last:
            end = min(begin + high, (begin // height + 1) * height)
            yield begin, end
            begin = end
