"""The merge methods in float64, block by block, as mergekit 0.1.5's definitions state them.

Most are sums, out = c·base + Σ f·value, whose factors follow from the recipe or from lengths and angles of the whole tensor.
Others thin deltas first (`sparse`), or decide for each element how much of each delta it takes (`selective`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

from mcp_server.recompute import filters
from mcp_server.recompute.adapters import CannotCompute
from mcp_server.recompute.inputs import CLOSE, SPARSE, Block, Made, Span, load, share_of_second, weights_of
from mcp_server.recompute.reading import spans
from mcp_server.recompute.selective import SELECTIVE, Compute
from mcp_server.recompute.sparse import Sparse

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

WHOLE: Final = frozenset(
    {"slerp", "nuslerp", "multislerp", "karcher", "model_stock", "sce", "ramplus_tl", "arcee_fusion", *SPARSE}
    - {"dare_linear", "dare_ties"}
)
"""Methods whose result at one element depends on the whole tensor (DARE's does when it rescales)."""


def reads_whole(made: Made) -> bool:
    """Whether blocks cannot be computed without a pass over the whole tensor."""
    if filters.asked_for(made):
        return filters.along_first(made)
    return made.method in WHOLE or (made.method in SPARSE and bool(made.shared.get("rescale")))


def prepare(made: Made, seed: int | None, close: float = CLOSE) -> Compute:
    """How to compute blocks of one tensor. Raises `CannotCompute` for a method or a value that has no definition here.

    `close`: how much rounding, relatively, the arithmetic that is checked adds to sums that may cancel.
    """
    if made.method in SPARSE:
        return Sparse(made, seed, close).block
    if made.method in SELECTIVE:
        return SELECTIVE[made.method](made, max(CLOSE, close))
    if filters.asked_for(made):
        return filters.by_filter(made)
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
    t, gram = share_of_second(weights_of(made)), _gram(made, deltas=True)
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


def _karcher(made: Made) -> Factors:
    """The Karcher mean of the directions at the mean length; every vector is a sum of the inputs, so by their products."""
    import numpy as np

    count, tol = len(made.operands), made.shared["tol"]
    if count == 1:
        return 0.0, [1.0]
    gram = _gram(made, deltas=True)
    lengths = np.sqrt(gram.diagonal())
    long = np.flatnonzero(lengths > tol)
    if not long.size:
        return 0.0, [0.0] * count
    directions = np.eye(count)[long] / lengths[long, None]

    def unit_of(vector: Array) -> Array:
        return vector / math.sqrt(float(vector @ gram @ vector))

    mean = directions.mean(axis=0)
    mean = directions[0] if math.sqrt(max(float(mean @ gram @ mean), 0.0)) < tol else unit_of(mean)
    for _ in range(int(made.shared["max_iter"])):
        cosines = np.clip(directions @ gram @ mean, -1, 1)
        angles = np.arccos(cosines)
        apart = angles >= tol
        stretch = np.where(apart, angles / np.where(apart, np.sin(angles), 1.0), 0.0)
        tangent = (stretch[:, None] * (directions - cosines[:, None] * mean)).sum(axis=0) / len(long)
        step = math.sqrt(max(float(tangent @ gram @ tangent), 0.0))
        if step < tol:
            break
        mean = unit_of(math.cos(step) * mean + math.sin(step) / step * tangent)
    return 0.0, [float(factor) for factor in lengths.mean() * mean]


def _model_stock(made: Made) -> Factors:
    import numpy as np

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
    "nuslerp": _nuslerp, "multislerp": _multislerp, "karcher": _karcher, "model_stock": _model_stock,
}  # fmt: skip
