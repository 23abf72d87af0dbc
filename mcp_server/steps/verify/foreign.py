"""Merges from elsewhere that cannot be computed exactly: random methods without their seed, and folders without a recipe.

Random methods keep every element with a known probability and, with `rescale`, keep the delta's expectation. So the projection
of what changed on each delta has a known mean and spread, whatever was drawn. Without a recipe, the change of each tensor is
written as the nearest sum of the sources' deltas; what is left over, and the factors, tell what can be told.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from mcp_server.recompute.adapters import CannotCompute
from mcp_server.recompute.inputs import SPARSE, Made, Operand
from mcp_server.recompute.merge import Merge
from mcp_server.recompute.methods import prepare
from mcp_server.recompute.names import Names
from mcp_server.recompute.pass_over import Recomputed, land
from mcp_server.recompute.reading import MANTISSA, is_float, read_rows, rounded, spans, unit
from mcp_server.recompute.values import Value
from mcp_server.schemas.evidence import Check

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

_SIGMAS: Final = 7.0
_SHARE: Final = 0.1
_ALIKE: Final = 0.9
"""The squared cosine from which two tensors count as one times a number."""
_UNIFORM: Final = 0.03
SHOWN: Final = 8


@dataclass
class Statistics:
    fitting: list[str] = field(default_factory=list)
    wrong: dict[str, Any] = field(default_factory=dict)


def statistics(merge: Merge, names: list[str], again: Recomputed, *, full: bool) -> Statistics:
    """Judge tensors of a random method by projection. Those that cannot be judged stay in neither list.

    What arrived of each source's delta does not depend on the draw: it is added to `again`.
    """
    assert merge.recipe is not None
    planner, found = Names(merge.recipe, merge.by_ref, merge.tensors, merge.folder, ours=merge.ours), Statistics()
    for name in names:
        made = planner.plan(name).made
        if made is None or made.base is None or made.method not in SPARSE:
            continue
        try:
            said = _judge(merge, made, again, full=full)
        except CannotCompute:
            continue
        if said:
            found.wrong[name] = said
        else:
            found.fitting.append(name)
    return found


def _judge(merge: Merge, made: Made, again: Recomputed, *, full: bool) -> str:
    """'' when the change is what the method makes on average, within its spread.

    The mean is the same method with every element kept; an election and normalisation move it, so for those the share may lie
    between a quarter and four times it.
    """
    import numpy as np

    certain = Made(
        made.name,
        made.shape,
        made.method,
        tuple(Operand(o.label, o.value, o.settings | {"density": 1.0}) for o in made.operands),
        made.base,
        made.shared | {"rescale": False},
    )
    compute, elects = prepare(certain, None), SPARSE[made.method][1]
    there = meant = noise = spread = 0.0
    along = size = held = 0.0
    outside = strange = 0
    equal_base = near_base = True
    alone = {operand.label: operand.settings["density"] < 1 for operand in made.operands}
    density = min(o.settings["density"] for o in made.operands)
    factor = 1.0 if made.shared["rescale"] else density
    for span in spans(made.shape, full=full):
        block = compute(span)
        assert block.base is not None
        stored = read_rows(merge.tensors[made.name], *span)
        strange += int(np.count_nonzero(~np.isfinite(stored)))
        land(merge, made, block, stored, again)
        change, moved = factor * (block.expected - block.base), stored - block.base
        along += float((stored * (block.base + change)).sum())
        size += float(((block.base + change) ** 2).sum())
        held += float((stored * stored).sum())
        step = unit(np_max(block.base, block.expected), _coarsest(merge, made))
        there += float((moved * change).sum())
        meant += float((change * change).sum())
        noise += float((step * step * change * change).sum())
        spread += float((change**4).sum()) * (1 - density) / density
        reach = block.moving * (2.0 / density + 2.0) + 4 * step
        outside += int((abs(moved) > reach).sum())
        equal_base = equal_base and not moved.any()
        near_base = near_base and bool((abs(moved) <= step).all())
        for label, delta in zip(list(alone), block.deltas, strict=True):
            alone[label] = alone[label] and np.array_equal(stored, rounded(block.base + delta, merge.tensors[made.name].dtype))
    if not meant:
        return "" if near_base else "is changed although no source changes it"
    if equal_base and meant > noise:
        return "equals the base: nothing was merged into it"
    if meant > noise and (only := [label for label, is_it in alone.items() if is_it]):
        return f"equals one source ({only[0]}), of which {made.method} drops a part"
    if strange:
        return f"holds {strange:,} values that are infinite or not a number"
    if outside and (whole := _multiple(along, size, held)):
        return whole
    if outside:
        return f"has {outside:,} values that no draw of {made.method} can make"
    share = there / meant
    slack = _SIGMAS * math.sqrt(noise + spread) / meant
    low, high = (0.25, 4.0) if elects else (1 - _SHARE, 1 + _SHARE)
    if not low - slack <= share <= high + slack:
        words = "has the opposite sign" if share < 0 else f"has the wrong scale: {share:.2f} times"
        return f"{words} of the change that {made.method} makes on average"
    return ""


def _multiple(along: float, size: float, held: float) -> str:
    """Whether a whole tensor is a multiple of what it should be, but for what is drawn, by its product with that and by sizes."""
    if not held:
        return "is zero everywhere"
    factor = along / size
    if along * along < _ALIKE * size * held or abs(factor - 1) < _SHARE:
        return ""
    if abs(factor + 1) < _SHARE:
        return "has the opposite sign of what the recipe makes"
    return f"has the wrong scale: {factor:.2g} times what the recipe makes"


def np_max(one: Array, other: Array) -> Array:
    import numpy as np

    larger: Array = np.maximum(np.abs(one), np.abs(other))
    return larger


def _coarsest(merge: Merge, made: Made) -> str:
    dtypes = [merge.tensors[made.name].dtype, *(operand.value.stored.dtype for operand in made.operands)]
    return min((dtype for dtype in dtypes if is_float(dtype)), key=lambda dtype: MANTISSA[dtype])


@dataclass
class _Fit:
    factors: tuple[float, ...]
    inside: bool
    words: str = ""


def without_recipe(merge: Merge, *, full: bool) -> list[Check]:
    """What can be told from base and sources alone."""
    if merge.is_adapter or merge.base is None or not merge.sources:
        hint = "no recipe: what the tensors should hold is unknown; give it with --recipe, or name --base and --source"
        reasons = "".join(f"; {name}: {why}" for name, why in merge.missing.items())
        return [Check(name="recomputed", passed=None, detail=hint + reasons)]
    fits = dict(_fits(merge, full=full))
    inside = {name: fit.factors for name, fit in fits.items() if fit.inside and fit.factors}
    outside = [name for name, fit in fits.items() if not fit.inside]
    labels = list(merge.sources)
    if not inside or len(outside) > len(fits) / 5:
        detail = (
            f"no recipe: {len(outside)} of {len(fits)} tensors are no weighted sum of the sources ({', '.join(labels)}): "
            "a method that selects, a wrong base, or other sources; give --recipe"
        )
        return [Check(name="recomputed", passed=None, detail=detail)]
    usual = _usual(list(inside.values()))
    shown = ", ".join(f"{label} {factor:.2f}" for label, factor in zip(labels, usual, strict=True))
    odd = {name: factors for name, factors in inside.items() if _far(factors, usual)}
    negated = [name for name, factors in odd.items() if not _far(tuple(-f for f in factors), usual)]
    told = f"no recipe: {len(inside)} of {len(fits)} tensors are base + a weighted sum of the sources' changes ({shown})"
    if outside or negated:
        broken = [*(f"{n} {fits[n].words}" for n in outside), *(f"{n} has the opposite sign of the change" for n in negated)]
        more = f"; and {len(broken) - SHOWN} more" if len(broken) > SHOWN else ""
        return [Check(name="recomputed", passed=False, detail=f"{told}, but {'; '.join(broken[:SHOWN])}{more}")]
    if odd:
        words = "; ".join(f"{name} {_odd_words(factors, labels)}" for name, factors in list(odd.items())[:SHOWN])
        return [Check(name="recomputed", passed=None, detail=f"{told}; {len(odd)} stand out: {words}; give --recipe to decide")]
    return [Check(name="recomputed", passed=None, detail=f"{told} throughout; give --recipe to say whether that was meant")]


def _odd_words(factors: tuple[float, ...], labels: list[str]) -> str:
    if all(abs(factor) < 1e-3 for factor in factors):
        return "equals the base"
    for index, label in enumerate(labels):
        if all(abs(f - (i == index)) < 1e-3 for i, f in enumerate(factors)):
            return f"equals one source ({label})"
    return "has " + ", ".join(f"{label} {factor:.2f}" for label, factor in zip(labels, factors, strict=True))


def _usual(every: list[tuple[float, ...]]) -> tuple[float, ...]:
    counts = Counter(tuple(round(f, 1) for f in factors) for factors in every)
    common = counts.most_common(1)[0][0]
    near = [factors for factors in every if tuple(round(f, 1) for f in factors) == common]
    return tuple(sorted(column)[len(column) // 2] for column in zip(*near, strict=True))


def _far(factors: tuple[float, ...], usual: tuple[float, ...]) -> bool:
    return any(abs(f - u) > max(_UNIFORM, _UNIFORM * abs(u)) for f, u in zip(factors, usual, strict=True))


def _fits(merge: Merge, *, full: bool) -> Iterator[tuple[str, _Fit]]:
    import numpy as np

    assert merge.base is not None
    for name, stored in merge.tensors.items():
        values = [source.value(name, stored.shape) for source in (merge.base, *merge.sources.values())]
        if not is_float(stored.dtype) or any(value is None or value.shape != stored.shape for value in values):
            continue
        gram, target, energy, blocks = 0.0, 0.0, 0.0, []
        try:
            for span in spans(stored.shape, full=full):
                rows = [value.rows(span)[0].ravel() for value in values if value is not None]
                moved = read_rows(stored, *span).ravel() - rows[0]
                deltas = np.stack([row - rows[0] for row in rows[1:]])
                gram, target = gram + deltas @ deltas.T, target + deltas @ moved
                energy += float(moved @ moved)
                blocks.append((moved, deltas, unit(np_max(rows[0], rows[0] + moved), _narrowest(stored.dtype, values))))
        except CannotCompute:
            continue
        if not np.any(gram):
            changed = any(moved.any() for moved, _, _ in blocks)
            yield name, _Fit((), not changed, "is changed although no source changes it")
            continue
        factors = np.linalg.lstsq(np.asarray(gram), np.asarray(target), rcond=1e-10)[0]
        inside = all(
            (np.abs(moved - factors @ deltas) <= 2 * step + 0.02 * np.abs(deltas).sum(0)).mean() > 0.999
            for moved, deltas, step in blocks
        )
        yield name, _Fit(tuple(float(f) for f in factors), bool(inside), "is no weighted sum of the sources")


def _narrowest(dtype: str, values: list[Value | None]) -> str:
    dtypes = [dtype, *(value.stored.dtype for value in values if value is not None)]
    return min(dtypes, key=lambda d: MANTISSA.get(d, 99))
