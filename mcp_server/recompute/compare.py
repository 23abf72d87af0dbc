"""A computed block against a stored one: how far they may differ, and what a difference looks like in plain words.

May differ   half an ulp of the output's dtype for its one rounding, plus the rounding of the arithmetic. The engine of this
             product works in float32 with float64 sums: 8·2⁻²³ of the terms that were added. Other tools work in the recipe's
             dtype: 4 of its roundings of every term of the change, and the whole change must then also be met as a sum.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from mcp_server.recompute.inputs import Block
from mcp_server.recompute.reading import MANTISSA, rounded, unit

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

_FLOAT32: Final = 8 * 2.0**-23
_SHARE: Final = 0.05
_SIGMAS: Final = 6.0
_NEARLY: Final = 0.95
COUNTED: Final = "values differ"
"""How a difference is told that has no better name."""
_KEPT_ELEMENTS: Final = 1 << 22
_MATCHED_ROWS: Final = 4096
_PRINT: Final = 32
"""So many first values of a tensor tell which one it is."""


@dataclass(frozen=True)
class Precision:
    """`dtype`: how the output is stored. `worked_in`: the dtype of the arithmetic, None for this product's engine.

    `folded_in`: adapters were first folded into a copy of their base in that dtype; `several` updates, one after the other.
    """

    dtype: str
    worked_in: str | None = None
    folded_in: str | None = None
    several: bool = False


def allowed(block: Block, precision: Precision, adapters: float) -> Array:
    """How far each value may be off. `adapters`: Σ of the factors on values that were folded first."""
    import numpy as np

    limit = 0.501 * unit(np.abs(block.expected) + 1e-300, precision.dtype) + _FLOAT32 * block.terms
    if precision.worked_in is not None:
        coarse = 2.0 ** -MANTISSA[precision.worked_in]
        base = np.abs(block.base) if block.base is not None else 0.0
        limit = limit + 4 * coarse * block.moving + unit(np.maximum(np.abs(block.expected), base), precision.worked_in)
    if precision.folded_in is not None and adapters:
        largest = np.maximum(np.abs(block.expected), np.abs(block.base) if block.base is not None else 0.0)
        if precision.several:  # each may be larger than what they come to
            largest = np.maximum(largest, block.terms)
        folding = [unit(largest, dtype) for dtype in {precision.folded_in, precision.dtype}]
        limit = limit + adapters * np.maximum.reduce(folding)
    return limit


@dataclass
class Tally:
    """What was seen of one tensor: counts, sums for the scale, and everything that it could be equal to."""

    name: str
    shape: tuple[int, ...]
    precision: Precision
    labels: Sequence[str]
    compared: int = 0
    wrong: int = 0
    strange: int = 0
    undecided: int = 0
    worst: float = 0.0
    limit: float = 0.0
    first_row: int | None = None
    last_row: int = 0
    equal: dict[str, bool] = field(default_factory=dict)
    sums: dict[str, float] = field(default_factory=lambda: dict.fromkeys(("me", "ee", "mm", "mc", "cc", "rc", "vv", "mmc"), 0.0))
    kept: list[tuple[int, Array, Array]] = field(default_factory=list)
    loosest: float = 0.0
    seen: Array | None = None
    meant: Array | None = None
    said: str = ""

    def add(
        self,
        first: int,
        block: Block,
        stored: Array,
        adapters: float,
        slack: Array | float = 0.0,
        beside: Array | None = None,
    ) -> None:
        """Compare rows from `first` on; `slack` is what the stored form itself cannot hold, `beside` the rows of a base that the
        method does not use."""
        import numpy as np

        expected, limit = block.expected, allowed(block, self.precision, adapters) + slack
        bad = ~(np.abs(stored - expected) <= limit) & ~_same_oddity(stored, expected)
        if bad.any() and block.otherwise is not None:
            for other in block.otherwise():
                bad &= ~(np.abs(stored - other) <= limit)
                if not bad.any():
                    break
        if bad.any() and block.undecided is not None:
            before = int(bad.sum())
            for other in block.undecided():
                bad &= ~(np.abs(stored - other) <= limit)
            self.undecided += before - int(bad.sum())
        self.compared += stored.size
        self.loosest = max(self.loosest, float(np.max(limit, initial=0.0)))
        if self.seen is None:
            self.seen, self.meant = stored.ravel()[:_PRINT].copy(), expected.ravel()[:_PRINT].copy()
        self._likeness(block, stored, beside)
        if sum(part.size for _, part, _ in self.kept) < _KEPT_ELEMENTS:
            self.kept.append((first, stored, expected))
        if bad.any():
            self.wrong += int(bad.sum())
            rows = np.flatnonzero(bad.any(axis=1))
            self.first_row = first + int(rows[0]) if self.first_row is None else self.first_row
            self.last_row = first + int(rows[-1])
            self.strange += int((bad & ~np.isfinite(stored) & np.isfinite(expected)).sum())
            error = np.abs(stored - expected)
            error = np.where(bad & np.isfinite(error), error, 0.0)
            place = np.unravel_index(int(error.argmax()), error.shape)
            if error[place] > self.worst:
                self.worst, self.limit = float(error[place]), float(np.broadcast_to(limit, error.shape)[place])

    def _likeness(self, block: Block, stored: Array, beside: Array | None) -> None:
        import numpy as np

        dtype, expected = self.precision.dtype, block.expected
        likes: dict[str, tuple[Array, ...]] = {"zero": (np.zeros_like(expected),), "negated": (-expected,)}
        if (base := block.base if block.base is not None else beside) is not None:
            likes["the base"] = (base,)
        for label, delta in zip(self.labels, block.deltas, strict=True):
            likes[label] = (delta,) if block.base is None else (block.base, delta)
        for label, terms in likes.items():
            # Hardly any tensor is one of these, which its first values show at little cost.
            self.equal[label] = self.equal.get(label, True) and all(
                np.array_equal(stored.ravel()[:count], rounded(np.sum([part.ravel()[:count] for part in terms], axis=0), dtype))
                for count in (_PRINT, stored.size)
            )
        with np.errstate(invalid="ignore", over="ignore"):  # of what is infinite or no number
            self._sum(block, stored)

    def _sum(self, block: Block, stored: Array) -> None:
        import numpy as np

        sums, dtype, expected = self.sums, self.precision.dtype, block.expected
        sums["me"] += float((stored * expected).sum())
        sums["ee"] += float((expected * expected).sum())
        sums["mm"] += float((stored * stored).sum())
        if block.base is not None:
            change, moved = expected - block.base, stored - block.base
            sums["mc"] += float((moved * change).sum())
            sums["mmc"] += float((moved * moved).sum())
            sums["cc"] += float((change * change).sum())
            sums["rc"] += float(((rounded(expected, dtype) - block.base) * change).sum())
            step = unit(np.maximum(np.abs(expected), np.abs(block.base)), self.precision.worked_in or dtype)
            sums["vv"] += float((step * step * change * change).sum())

    def settle(self, *, closely: bool) -> None:
        """Put what is wrong into words, and let go of the values; `closely` looks for other orders of them too."""
        if not closely:
            self.kept.clear()
        self.said = in_words(self)
        self.kept.clear()

    def is_meant_for(self, shape: tuple[int, ...], meant: Array) -> bool:
        """Whether what is stored is what another tensor of this shape should begin with."""
        if self.seen is None or shape != self.shape or self.seen.size < _PRINT // 4 or meant.min() == meant.max():
            return False
        return bool((abs(self.seen - meant) <= max(self.loosest, 1e-12)).all())

    def drifted(self) -> float | None:
        """For other tools' arithmetic: the share of the change that is there, when it is not what rounding explains."""
        if self.precision.worked_in is None or not self.sums["cc"]:
            return None
        there, meant = self.sums["mc"] / self.sums["cc"], self.sums["rc"] / self.sums["cc"]
        noise = _SIGMAS * math.sqrt(self.sums["vv"]) / self.sums["cc"]
        return there if abs(there - meant) > max(_SHARE, noise) else None


def _same_oddity(stored: Array, expected: Array) -> Array:
    """Both not a number, or the same infinity: what the sources hold, the merge holds."""
    import numpy as np

    same: Array = (np.isnan(stored) & np.isnan(expected)) | (stored == expected)
    return same


def in_words(tally: Tally) -> str:
    """What is wrong with one tensor. The commonest mistakes have names; everything else is counted."""

    for label in ("the base", *tally.labels):
        if tally.equal.get(label) and not (label != "the base" and tally.equal.get("the base")):
            return "equals the base: nothing was merged into it" if label == "the base" else f"equals one source ({label})"
    if tally.equal.get("zero"):
        return "is zero everywhere"
    if tally.equal.get("negated"):
        return "has the opposite sign of what the recipe makes"
    if said := _rearranged(tally):
        return said
    if said := _scaled(tally):
        return said
    share = f"{tally.wrong:,} of {tally.compared:,} {COUNTED}"
    if tally.strange:
        share = f"holds {tally.strange:,} values that are infinite or not a number where the recipe makes finite ones"
        share += f"; {tally.wrong - tally.strange:,} others differ" if tally.wrong > tally.strange else ""
    rows = ""
    if len(tally.shape) > 1 and tally.first_row is not None and tally.wrong < tally.compared / 2:
        rows = (
            f", in rows {tally.first_row} to {tally.last_row}"
            if tally.first_row != tally.last_row
            else f", in row {tally.first_row}"
        )
    if (drift := tally.drifted()) is not None and not tally.wrong:
        return f"holds {drift:.2f} of the change that the recipe makes (wrong scale)"
    off = f"; by up to {tally.worst:.3g} where rounding explains {tally.limit:.2g}" if tally.worst else ""
    return f"{share}{rows}{off}"


def _rearranged(tally: Tally) -> str:
    """Transposed, or its rows or columns in another order; told only when the tensor was compared whole."""
    import numpy as np

    if sum(part.size for _, part, _ in tally.kept) != math.prod(tally.shape) or tally.compared < 4:
        return ""
    dtype = tally.precision.dtype
    stored = np.concatenate([part for _, part, _ in tally.kept])
    expected = rounded(np.concatenate([part for _, _, part in tally.kept]), dtype)
    if not np.isfinite(stored).all():
        return ""

    def near(one: Array, other: Array) -> float:
        """The share of values that agree."""
        spare = np.maximum(2 * unit(np.maximum(np.abs(one), np.abs(other)), dtype), tally.loosest)
        return float((np.abs(one - other) <= spare).mean())

    as_it_is = near(stored, expected)

    def alike(one: Array, other: Array) -> bool:
        """All agree, or nearly all and clearly more than in the order that is meant: where a method selects, rounding decides a
        few values otherwise."""
        share = near(one, other) if one.shape == other.shape else 0.0
        return share == 1.0 or share > max(_NEARLY, as_it_is + 1 - _NEARLY)

    if len(tally.shape) == 2 and alike(stored, expected.T):
        return "is transposed"
    if alike(stored.reshape(-1), expected.T.reshape(-1)):
        return "is transposed (its values lie in the order of columns)"
    if len(expected) > 1 and alike(stored, expected[::-1]):
        return "has its rows in reversed order"
    if alike(stored, expected[:, ::-1]):
        return "has its values in reversed order"
    for one, other, what in ((stored, expected, "rows"), (stored.T, expected.T, "columns")):
        if (order := _order(one, other)) is not None and alike(one, other[order]):
            return f"has its {what} in another order"
    unlike = tally.sums["me"] < 0.5 * math.sqrt(tally.sums["ee"] * tally.sums["mm"])
    if unlike and alike(np.sort(stored, axis=None), np.sort(expected, axis=None)):
        return "has the right values in another order"
    return ""


def _order(stored: Array, expected: Array) -> Array | None:
    """Which expected row is nearest to each stored one, when that is another order of all rows."""
    import numpy as np

    if not 1 < len(expected) <= _MATCHED_ROWS or stored.shape != expected.shape:
        return None
    nearest = ((expected**2).sum(axis=1)[None] - 2 * stored @ expected.T).argmin(axis=1)
    moved = bool((nearest != np.arange(len(expected))).any())
    return nearest if moved and len(np.unique(nearest)) == len(expected) else None


def _scaled(tally: Tally) -> str:
    """A multiple of the right tensor, or of the right change."""
    sums = tally.sums
    if sums["cc"]:
        factor = sums["mc"] / sums["cc"]
        left = 1 - sums["mc"] ** 2 / (sums["cc"] * sums["mmc"]) if sums["mmc"] else 1.0
        if left < 0.02 and abs(factor - 1) > _SHARE:
            return f"has the wrong scale: {factor:.2f} times the change that the recipe makes"
    if sums["ee"] and sums["mm"]:
        factor = sums["me"] / sums["ee"]
        if 1 - sums["me"] ** 2 / (sums["ee"] * sums["mm"]) < 1e-4 and abs(factor - 1) > 1e-3:
            if abs(factor + 1) < 1e-3:
                return "has the opposite sign of what the recipe makes"
            return f"has the wrong scale: {factor:.3g} times what the recipe makes"
    return ""
