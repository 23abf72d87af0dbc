"""The merge methods in float64, block by block, as mergekit 0.1.5's definitions state them.

Most are sums, out = c·base + Σ f·value, whose factors follow from the recipe or from lengths and angles of the whole tensor. The
others thin deltas first: `sparse`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

from mcp_server.recompute.adapters import CannotCompute
from mcp_server.recompute.inputs import SPARSE, Block, Made, Span, load, weights_of
from mcp_server.recompute.reading import BLOCK_ELEMENTS, rows_of, spans
from mcp_server.recompute.sparse import CLOSE, Sparse

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

WHOLE: Final = frozenset({"slerp", "nuslerp", "multislerp", "model_stock", "sce", *SPARSE} - {"dare_linear", "dare_ties"})
"""Methods whose result at one element depends on the whole tensor (DARE's does when it rescales)."""

Compute = Callable[[Span], Block]


def reads_whole(made: Made) -> bool:
    """Whether blocks cannot be computed without a pass over the whole tensor."""
    return made.method in WHOLE or (made.method in SPARSE and bool(made.shared.get("rescale")))


def prepare(made: Made, seed: int | None, close: float = CLOSE) -> Compute:
    """How to compute blocks of one tensor. Raises `CannotCompute` for a method or a value that has no definition here.

    `close`: how much rounding, relatively, the arithmetic that is checked adds to sums that may cancel.
    """
    if made.method in SPARSE:
        return Sparse(made, seed, close).block
    if made.method == "sce":
        return _sce(made)
    if made.method == "nearswap":
        return _nearswap(made)
    if made.method not in _FACTORS:
        raise CannotCompute(f"{made.method} has no definition here")
    scale, factors = _FACTORS[made.method](made)
    return lambda span: _weighted(made, span, scale, factors)


def _weighted(made: Made, span: Span, scale: float, factors: Sequence[float]) -> Block:
    """scale·base + Σ factor·value, as base + Σ factor·delta where there is a base."""
    import numpy as np

    base, values, deltas, size = load(made, span)
    total = (scale * base) if base is not None else np.zeros_like(values[0])
    for factor, value in zip(factors, values, strict=True):
        total = total + factor * value
    moving = sum((abs(f) * np.abs(d) for f, d in zip(factors, deltas, strict=True)), np.zeros_like(total))
    return Block(total, size * max(1.0, *map(abs, factors)), moving, base, deltas)


# ── factors of plain sums ─────────────────────────────────────────────────────────────────────────────────────────────────

Factors = tuple[float, list[float]]


def _linear(made: Made) -> Factors:
    weights = weights_of(made)
    total = sum(weights) if made.shared["normalize"] else 1.0
    return 0.0, [weight / total for weight in weights]


def _passthrough(made: Made) -> Factors:
    return 0.0, [made.operands[0].settings.get("scale", 1.0)]


def _kept(_: Made) -> Factors:
    return 0.0, [1.0]


def _task_arithmetic(made: Made) -> Factors:
    weights = weights_of(made)
    lambda_ = made.shared["lambda"]
    if made.shared["normalize"] and abs(sum(weights)) >= 1e-8:
        lambda_ /= sum(weights)
    factors = [lambda_ * weight for weight in weights]
    return 1 - sum(factors), factors


def _gram(made: Made, *, deltas: bool) -> Array:
    """Inner products of the deltas, or of base and values, over the whole tensor."""
    import numpy as np

    total: Any = 0.0
    for span in spans(made.shape, full=True):
        base, values, moved, _ = load(made, span)
        rows = moved if deltas else [*([base] if base is not None else []), *values]
        flat = np.stack([row.ravel() for row in rows])
        total = total + flat @ flat.T
    return np.asarray(total)


def _slerp(made: Made) -> Factors:
    t, gram = made.shared["t"], _gram(made, deltas=False)
    norms = [n if n > 1e-8 else 1.0 for n in map(math.sqrt, gram.diagonal())]
    cosine = max(-1.0, min(1.0, gram[0, 1] / (norms[0] * norms[1])))
    if abs(cosine) > 0.9995:
        return 1 - t, [t]
    angle = math.acos(cosine)
    return math.sin((1 - t) * angle) / math.sin(angle), [math.sin(t * angle) / math.sin(angle)]


def _nuslerp(made: Made) -> Factors:
    weights = weights_of(made)
    t, gram = weights[1] / sum(weights), _gram(made, deltas=True)
    norms = [max(math.sqrt(n), 1e-7) for n in gram.diagonal()]
    cosine = max(-1.0, min(1.0, gram[0, 1] / (norms[0] * norms[1])))
    if 1 - cosine**2 <= 1e-16:
        factors = [1 - t, t]
    else:
        angle = math.acos(cosine)
        factors = [math.sin((1 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle)]
    return 1 - sum(factors), factors


def _multislerp(made: Made) -> Factors:
    """The mean direction, and one step along the sphere from it; all of it in the span of the deltas, so by their products."""
    import numpy as np

    if len(made.operands) == 1:
        return 0.0, [1.0]
    eps, gram = made.shared["eps"], _gram(made, deltas=True)
    weights = np.array(weights_of(made))
    weights = weights / weights.sum() if made.shared["normalize_weights"] else weights
    lengths = np.sqrt(gram.diagonal())
    if not lengths.any():
        return 1.0, [0.0] * len(weights)
    unit = 1 / (lengths + eps)
    mean = weights * unit
    mean = mean / math.sqrt(max(float(mean @ gram @ mean), 1e-300))
    along = unit * (gram @ mean)  # each unit vector's part along the mean
    tangent = weights * unit - (weights * along).sum() * mean
    step = math.sqrt(max(float(tangent @ gram @ tangent), 0.0)) + eps
    factors = (mean * math.cos(step) + tangent * (math.sin(step) / step)) * float((lengths * weights).sum())
    return 1 - float(factors.sum()), [float(f) for f in factors]


def _model_stock(made: Made) -> Factors:
    import numpy as np

    if made.shared.get("filter_wise"):
        raise CannotCompute("model_stock by filters has no definition here")
    gram, count = _gram(made, deltas=True), len(made.operands)
    lengths = np.sqrt(gram.diagonal())
    cosines = [
        float(np.clip(gram[i, j] / max(lengths[i] * lengths[j], 1e-6), -1, 1)) for i, j in itertools.combinations(range(count), 2)
    ]
    cosine = float(np.mean(cosines))
    denominator = 1 + (count - 1) * cosine
    t = 0.0 if abs(denominator) < 1e-6 else count * cosine / denominator
    return 1 - t, [t / count] * count


_FACTORS: Final[dict[str, Callable[[Made], Factors]]] = {
    "linear": _linear, "passthrough": _passthrough, "kept": _kept, "task_arithmetic": _task_arithmetic, "slerp": _slerp,
    "nuslerp": _nuslerp, "multislerp": _multislerp, "model_stock": _model_stock,
}  # fmt: skip


# ── others ────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _sce(made: Made) -> Compute:
    """Select by variance, weigh by energy, erase minorities (needs the tensor in memory for its ranks)."""
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
            last = float(variance.ravel()[order[k - 1]])
            loose = np.abs(variance - last) <= CLOSE * last
    energy = ((moved * mask) ** 2).reshape(len(moved), -1).mean(axis=1)
    weights = energy / energy.sum() if energy.sum() >= 1e-6 else np.full(len(moved), 1 / len(moved))

    def mixed(part: slice, chosen: Array, tie: int = 0) -> Array:
        """`tie`: the sign where the sum of the changes is zero within rounding; 0 decides as defined (plus)."""
        own = moved[:, part] * chosen
        total = own.sum(0)
        sign = np.where(total >= 0, 1, -1)
        if tie:
            sign = np.where(np.abs(total) <= CLOSE * np.abs(own).sum(0), tie, sign)
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


def _nearswap(made: Made) -> Compute:
    import numpy as np

    def block(span: Span) -> Block:
        base, _, deltas, size = load(made, span)
        assert base is not None
        share = np.clip(made.shared["t"] / np.maximum(np.abs(deltas[0]), 1e-6), 0, 1)
        return Block(base + share * deltas[0], size, np.abs(share * deltas[0]), base, deltas)

    return block
