"""Sparse sums: thin every delta (by magnitude, at random, by rank), rescale it where asked, add; some methods elect a sign first.

Ties of magnitude go to the lower index, as the engine documents; mergekit leaves them to a sort. An element that lies on a
threshold within rounding may be decided either way: `Block.otherwise` gives the results of the other decisions.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from mcp_server.recompute import random
from mcp_server.recompute.adapters import CannotCompute
from mcp_server.recompute.inputs import CLOSE, SPARSE, Block, Made, Span, load, weights_of
from mcp_server.recompute.reading import rows_of, spans

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

_NEGLIGIBLE: Final = 1e-7
HELD_ELEMENTS: Final = 1 << 25
"""One delta's magnitudes are held between passes up to this many (128 MiB); those of larger ones are computed in each pass."""


class Sparse:
    """Thin every delta, rescale it to its L1 norm where asked, add; with an election only what agrees with the elected sign."""

    def __init__(self, made: Made, seed: int | None, close: float = CLOSE) -> None:
        self.made, self.seed, self.cancels = made, seed, max(CLOSE, close)
        self.kind, self.elects = SPARSE[made.method]
        self.weights = weights_of(made)
        self.densities = [operand.settings.get("density", 1.0) for operand in made.operands]
        thinned = [i for i, density in enumerate(self.densities) if 0 < density < 1]
        if self.kind in ("random", "rank") and thinned and seed is None:
            raise CannotCompute(f"{made.method} is random and no seed is recorded")
        self.cuts: dict[int, list[_Cut]] = {}
        if self.kind in ("magnitude", "outliers"):
            self.cuts = {i: self._cuts(i) for i in thinned}
        self.scales = [1.0] * len(self.densities)
        self.scale_error = 0.0
        if made.shared["rescale"] and thinned:
            self._rescale(thinned)

    def _cuts(self, index: int) -> list[_Cut]:
        """The ranks between which elements are kept: for ties from the first to the k-th."""
        count = math.prod(self.made.shape)
        target = int(self.densities[index] * count)
        if self.kind == "magnitude":
            ranks = [max(1, target)]
        else:
            bottom = max(0, count - target - int(self.made.operands[index].settings.get("gamma", 0.01) * count))
            ranks = [count - bottom, count - bottom - target]
        magnitudes = _Magnitudes(self.made, index)
        return [_cut(magnitudes, rank) for rank in ranks]

    def _keeps(self, index: int, delta: Array, span: Span) -> tuple[Array, Array]:
        """(which elements are kept, which of them could be decided otherwise within rounding)."""
        import numpy as np

        if self.densities[index] >= 1:
            return np.ones(delta.shape, bool), np.zeros(delta.shape, bool)
        if self.densities[index] <= 0:
            return np.zeros(delta.shape, bool), np.zeros(delta.shape, bool)
        first = span[0] * rows_of(self.made.shape)[1]
        if self.kind in ("random", "rank"):
            assert self.seed is not None
            bits = random.uniform_bits(self.seed, index, self.made.name, first, delta.size).reshape(delta.shape)
            if self.kind == "random":
                return random.kept_with(self.densities[index], bits), np.zeros(delta.shape, bool)
            probability, close = self._by_rank(index, delta)
            return random.kept_by(probability, bits), close
        inside = self.cuts[index][0].above(delta, first)
        close = self.cuts[index][0].close(delta)
        if len(self.cuts[index]) > 1:
            inside &= ~self.cuts[index][1].above(delta, first)
            close |= self.cuts[index][1].close(delta)
        return inside, close

    def _by_rank(self, index: int, delta: Array) -> tuple[Array, Array]:
        """DELLA: in each row of the last dimension the smallest magnitude has density − ε, the largest density + ε."""
        import numpy as np

        row = self.made.shape[-1] if self.made.shape else 1
        if row < 2:
            raise CannotCompute("DELLA on rows of one element")
        sizes = np.abs(delta).astype(np.float32).reshape(-1, row)
        order = np.argsort(sizes, axis=1, kind="stable")
        ranks = np.empty(sizes.shape)
        np.put_along_axis(ranks, order, np.arange(row, dtype=np.float64)[None], axis=1)
        epsilon = self.made.operands[index].settings.get("epsilon", 0.15)
        probability = self.densities[index] - epsilon + ranks / (row - 1) * 2 * epsilon
        ordered = np.take_along_axis(sizes, order, axis=1)
        near = np.zeros(sizes.shape, bool)
        touching = np.diff(ordered, axis=1) <= CLOSE * np.abs(ordered[:, 1:])
        near[:, 1:] |= touching
        near[:, :-1] |= touching
        close = np.zeros(sizes.shape, bool)
        np.put_along_axis(close, order, near, axis=1)
        return probability.reshape(delta.shape), close.reshape(delta.shape)

    def _rescale(self, thinned: list[int]) -> None:
        import numpy as np

        sums = np.zeros((len(self.densities), 3))
        for span in spans(self.made.shape, full=True):
            _, _, deltas, _ = load(self.made, span)
            for i in thinned:
                kept, close = self._keeps(i, deltas[i], span)
                size = np.abs(deltas[i])
                sums[i] += (size.sum(), size[kept].sum(), size[close & (deltas[i] != 0)].sum())
        for i in thinned:
            before, after, open_ = sums[i]
            if before >= _NEGLIGIBLE and after >= _NEGLIGIBLE:
                self.scales[i] = before / after
                if self.kind != "random":
                    self.scale_error = max(self.scale_error, min(open_ / after, 0.05) if open_ < after else 0.0)

    def block(self, span: Span) -> Block:
        import numpy as np

        made, shared = self.made, self.made.shared
        base, _, deltas, size = load(made, span)
        assert base is not None
        decided = [self._keeps(i, delta, span) for i, delta in enumerate(deltas)]
        masks = [kept for kept, _ in decided]
        expected = base + shared["lambda"] * self._mix(deltas, masks)
        reach = sum((abs(w) * s * np.abs(d) for w, s, d in zip(self.weights, self.scales, deltas, strict=True)), np.zeros(1))
        reach = abs(shared["lambda"]) * (reach / max(min(map(abs, self.weights)), 1e-9) if shared["normalize"] else reach)
        terms = size * max(1.0, *self.scales) + reach + (self.scale_error / 2.0**-21) * reach

        def otherwise() -> Iterator[Array]:
            loose = [i for i, (_, close) in enumerate(decided) if close.any()]
            for flips in itertools.product((False, True), repeat=min(len(loose), 4)):
                chosen = list(masks)
                for i, flip in zip(loose, flips, strict=False):
                    if flip:
                        chosen[i] = masks[i] ^ decided[i][1]
                for sign in (0, 1, -1) if self.elects else (0,):
                    yield base + shared["lambda"] * self._mix(deltas, chosen, tie=sign)

        return Block(expected, terms, np.broadcast_to(reach, expected.shape), base, deltas, otherwise)

    def _mix(self, deltas: list[Array], masks: list[Array], tie: int = 0) -> Array:
        """The combined change. `tie`: the sign where the sources' sum is zero within rounding; 0 decides as defined (plus)."""
        import numpy as np

        weights = np.array(self.weights).reshape(-1, *[1] * deltas[0].ndim)
        parts = np.stack([s * d * m for s, d, m in zip(self.scales, deltas, masks, strict=True)]) * weights
        if self.elects:
            sums = parts.sum(0)
            sign = np.where(sums >= 0, 1.0, -1.0)
            if tie:
                sign = np.where(np.abs(sums) <= self.cancels * np.abs(parts).sum(0), float(tie), sign)
            agrees = np.sign(parts) == sign
            total, divisor = (parts * agrees).sum(0), (weights * agrees).sum(0)
            divisor = np.where(divisor == 0, 1.0, divisor)
        else:
            total, whole = parts.sum(0), float(weights.sum())
            divisor = np.array(whole if abs(whole) >= 1e-8 else 1.0)
        result: Array = total / divisor if self.made.shared["normalize"] else total
        return result


@dataclass(frozen=True)
class _Cut:
    """Rank k of the magnitudes: the bit pattern (of float32) there, and the position below which equal ones still count."""

    pattern: int
    position: int
    magnitude: float

    def above(self, delta: Array, first: int) -> Array:
        import numpy as np

        bits = _patterns(delta)
        equal_counts = first + np.arange(bits.size) < self.position
        kept: Array = ((bits > self.pattern) | ((bits == self.pattern) & equal_counts)).reshape(delta.shape)
        return kept

    def close(self, delta: Array) -> Array:
        import numpy as np

        near: Array = np.abs(np.abs(delta) - self.magnitude) <= CLOSE * self.magnitude
        return near


def _patterns(delta: Array) -> Array:
    import numpy as np

    return np.abs(delta.astype(np.float32)).ravel().view(np.uint32)


class _Magnitudes:
    """The bit patterns of one delta's magnitudes, in blocks, as often as they are asked for.

    An adapter's delta is a product, which costs far more than counting it: it is computed once where its patterns can be held.
    """

    def __init__(self, made: Made, index: int) -> None:
        self.made, self.index, self.count = made, index, math.prod(made.shape)
        self.held = list(self._computed()) if self.count <= HELD_ELEMENTS else None

    def __iter__(self) -> Iterator[Array]:
        return self._computed() if self.held is None else iter(self.held)

    def _computed(self) -> Iterator[Array]:
        only = replace(self.made, operands=(self.made.operands[self.index],))
        for span in spans(self.made.shape, full=True):
            _, _, deltas, _ = load(only, span)
            yield _patterns(deltas[0])


def _cut(magnitudes: _Magnitudes, rank: int) -> _Cut:
    """Count patterns by their upper half, then by their lower half within it; then find where the last equal one lies."""
    import numpy as np

    if rank <= 0:
        return _Cut(0x7FFFFFFF, 0, math.inf)

    def fall(counts: Array, left: int) -> tuple[int, int]:
        from_top = np.cumsum(counts[::-1])
        place = int(np.searchsorted(from_top, left))
        return len(counts) - 1 - place, left - (int(from_top[place - 1]) if place else 0)

    none = np.zeros(1 << 16, np.int64)
    high, left = fall(sum((np.bincount(b >> 16, minlength=1 << 16) for b in magnitudes), none), rank)
    within = sum((np.bincount(b[b >> 16 == high] & 0xFFFF, minlength=1 << 16) for b in magnitudes), none)
    low, left = fall(within, left)
    pattern = high << 16 | low
    magnitude = float(np.array(pattern, np.uint32).view(np.float32))
    if left == within[low]:  # all equal ones count, wherever they lie
        return _Cut(pattern, magnitudes.count, magnitude)
    first, position = 0, 0
    for bits in magnitudes:
        (equal,) = np.nonzero(bits == pattern)
        if left <= equal.size:
            position = first + int(equal[left - 1]) + 1
            break
        left -= equal.size
        first += bits.size
    return _Cut(pattern, position, magnitude)
