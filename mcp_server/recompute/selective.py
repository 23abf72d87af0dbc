"""Methods that decide for each element how much of each delta it takes, as mergekit 0.1.5's definitions state them.

An element that lies on a threshold within rounding may be decided either way: `Block.otherwise` gives the other results.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final

from mcp_server.recompute.adapters import CannotCompute
from mcp_server.recompute.inputs import CLOSE, Block, Made, Span, load
from mcp_server.recompute.reading import BLOCK_ELEMENTS, rows_of, spans

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

Compute = Callable[[Span], Block]
_SAMPLED_ELEMENTS: Final = 1_000_000
"""mergekit estimates the quartiles of larger tensors from this many elements, drawn without a seed."""


def _nearswap(made: Made, _close: float) -> Compute:
    import numpy as np

    def block(span: Span) -> Block:
        base, _, deltas, size = load(made, span)
        assert base is not None
        share = np.clip(made.shared["t"] / np.maximum(np.abs(deltas[0]), 1e-6), 0, 1)
        return Block(base + share * deltas[0], size, np.abs(share * deltas[0]), base, deltas)

    return block


# ── ram, ramplus_tl: what one source alone changes, and what several change ──────────────────────────────────────────────


def _ram(made: Made, close: float) -> Compute:
    import numpy as np

    return _sharing(made, close, np.ones(len(made.operands)), 0.0)


def _ramplus(made: Made, close: float) -> Compute:
    """What one source alone changes counts 1 + r·min(shared ÷ alone, alpha) times, by its counts over the tensor."""
    import numpy as np

    epsilon, count = made.shared["epsilon"], len(made.operands)
    shared, alone, loose = np.zeros(count), np.zeros(count), np.zeros(count)
    for span in spans(made.shape, full=True):
        deltas = np.stack(load(made, span)[2])
        changed = np.abs(deltas) > epsilon
        number = changed.sum(axis=0)
        shared += (changed & (number > 1)).reshape(count, -1).sum(axis=1)
        alone += (changed & (number == 1)).reshape(count, -1).sum(axis=1)
        loose += _on(np.abs(deltas), epsilon, close).any(axis=0).sum()

    def factors(more: Array) -> Array:
        """With `more` elements counted as shared and not as alone (or the reverse)."""
        ratio = np.maximum(shared + more, 0) / np.maximum(alone - more, epsilon)
        found: Array = 1 + made.shared["r"] * np.clip(ratio, 0, made.shared["alpha"])
        return found

    spread = np.maximum(np.abs(factors(loose) - factors(0 * loose)), np.abs(factors(-loose) - factors(0 * loose)))
    return _sharing(made, close, factors(0 * loose), float(spread.max()))


def _sharing(made: Made, close: float, factors: Array, error: float) -> Compute:
    """`error`: how far the factors may be off."""
    import numpy as np

    epsilon = made.shared["epsilon"]

    def mixed(deltas: Array, changed: Array) -> Array:
        number = changed.sum(axis=0)
        own = deltas * changed
        weights = factors.reshape(-1, *[1] * (deltas.ndim - 1))
        result: Array = np.where(number == 1, (own * weights).sum(axis=0), own.sum(axis=0) / np.maximum(number, 1))
        return result

    def block(span: Span) -> Block:
        base, _, listed, size = load(made, span)
        assert base is not None
        deltas = np.stack(listed)
        changed, loose = np.abs(deltas) > epsilon, _on(np.abs(deltas), epsilon, close)
        reach = (np.abs(deltas) * factors.reshape(-1, *[1] * (deltas.ndim - 1))).sum(axis=0)

        def otherwise() -> Iterator[Array]:
            open_ = [i for i in range(len(deltas)) if loose[i].any()]
            for flips in itertools.product((False, True), repeat=min(len(open_), 4)):
                chosen = changed.copy()
                for i, flip in zip(open_, flips, strict=False):
                    chosen[i] ^= loose[i] & flip
                yield base + mixed(deltas, chosen)

        return Block(base + mixed(deltas, changed), size + error * 2.0**20 * reach, reach, base, listed, otherwise)

    return block


def _on(values: Array, threshold: float, close: float) -> Array:
    """Which values lie on a threshold within rounding."""
    import numpy as np

    near: Array = np.abs(values - threshold) <= close * abs(threshold)
    return near


# ── sce: select by variance, weigh by energy, erase minorities ────────────────────────────────────────────────────────────


def _sce(made: Made, close: float) -> Compute:
    import numpy as np

    topk = made.shared["select_topk"]
    if math.prod(made.shape) > 16 * BLOCK_ELEMENTS:
        raise CannotCompute("sce ranks a tensor whole, and this one is too large to hold")
    base, _, deltas, size = load(made, (0, rows_of(made.shape)[0]))
    assert base is not None
    moved = np.stack(deltas)
    mask, loose = np.ones(base.shape, bool), np.zeros(base.shape, bool)
    if topk < 1:
        variance = moved.var(axis=0).astype(np.float32)
        k = int(np.count_nonzero(variance) * topk)
        order = np.argsort(-variance.ravel(), kind="stable")
        mask = np.zeros(variance.size, bool)
        mask[order[:k]] = True
        mask = mask.reshape(variance.shape)
        if k:
            loose = _on(variance, float(variance.ravel()[order[k - 1]]), close)
    energy = ((moved * mask) ** 2).reshape(len(moved), -1).mean(axis=1)
    weights = energy / energy.sum() if energy.sum() >= 1e-6 else np.full(len(moved), 1 / len(moved))

    def mixed(part: slice, chosen: Array, tie: int = 0) -> Array:
        """`tie`: the sign where the sum of the changes is zero within rounding; 0 decides as defined (plus)."""
        own = moved[:, part] * chosen
        total = own.sum(0)
        sign = np.where(total >= 0, 1, -1)
        if tie:
            sign = np.where(np.abs(total) <= close * np.abs(own).sum(0), tie, sign)
        kept = weights.reshape(-1, *[1] * (own.ndim - 1)) * (np.sign(own) == sign)
        result: Array = base[part] + (own * kept).sum(0) / np.maximum(kept.sum(0), 1e-6)
        return result

    def block(span: Span) -> Block:
        part = slice(*span)

        def otherwise() -> Iterator[Array]:
            for chosen in (mask[part], mask[part] ^ loose[part]):
                for tie in (0, 1, -1):
                    yield mixed(part, chosen, tie)

        reach = np.abs(moved[:, part]).sum(0)
        return Block(mixed(part, mask[part]), size[part], reach, base[part], [delta[part] for delta in deltas], otherwise)

    return block


# ── arcee_fusion: take the other's value where its importance stands out ─────────────────────────────────────────────────


def _arcee_fusion(made: Made, close: float) -> Compute:
    """Importance is |delta| times the divergence of its row's softmax; the threshold is the median + 1.5 · (Q3 − Q1).

    The divergence is a small difference of large terms. Arithmetic coarser than float64 (`close`) may leave nothing of it, and
    mergekit draws the quartiles of large tensors at random: then only the exact selection decides, and what holds the base's and
    the source's values in another one stays undecided.
    """
    import numpy as np

    count, columns = math.prod(made.shape), (made.shape or (1,))[-1]
    exact = close <= CLOSE
    if count > 16 * BLOCK_ELEMENTS:
        raise CannotCompute("arcee_fusion ranks a tensor whole, and this one is too large to hold")
    if not count:
        none = np.zeros((0, columns))
        return lambda _span: Block(none, none, none, none, [])
    base, _, deltas, size = load(made, (0, rows_of(made.shape)[0]))
    assert base is not None
    old, delta = base.reshape(-1, columns), deltas[0].reshape(-1, columns)
    scores, blur = _importance(old, delta, 2.0**-40)
    ordered = np.sort(scores.ravel())
    low, middle, high = (float(ordered[(count - 1) * quarter // 4]) for quarter in (1, 2, 3))
    threshold = middle + 1.5 * (high - low)
    loose = np.abs(scores - threshold) <= blur + CLOSE * threshold
    open_ = not exact
    if not exact and count <= _SAMPLED_ELEMENTS:
        coarse = np.abs(scores - threshold) <= _importance(old, delta, close)[1] + CLOSE * threshold
        open_ = bool(coarse.mean() > 0.02)
        loose = loose if open_ else coarse
    taken, loose = (scores >= threshold).reshape(base.shape), loose.reshape(base.shape)

    def block(span: Span) -> Block:
        part = slice(*span)
        own, start = deltas[0][part], base[part]
        reach = np.abs(own)
        results = (start + own * taken[part], start + own * (taken[part] ^ loose[part]))
        either = (lambda: iter((start, start + own))) if open_ else None
        return Block(results[0], size[part], reach, start, [own], lambda: iter(results), either)

    return block


def _importance(base: Array, delta: Array, close: float) -> tuple[Array, Array]:
    """(importance, how far rounding may move it): shape (rows, columns)."""
    import numpy as np

    def softmax(values: Array) -> Array:
        powers = np.exp(values - values.max(axis=1, keepdims=True))
        shares: Array = powers / powers.sum(axis=1, keepdims=True) + 1e-8
        return shares

    after, before = softmax(base + delta), softmax(base)
    parts = after * np.log(after / before)
    divergence = np.maximum(parts.sum(axis=1, keepdims=True), 0.0)
    noise = close * (after + np.abs(parts)).sum(axis=1, keepdims=True)
    return np.abs(delta) * divergence, np.abs(delta) * (noise + CLOSE * divergence)


SELECTIVE: Final[dict[str, Callable[[Made, float], Compute]]] = {
    "nearswap": _nearswap, "ram": _ram, "ramplus_tl": _ramplus, "sce": _sce, "arcee_fusion": _arcee_fusion,
}  # fmt: skip
