"""How far each source's delta arrived in the merge, measured on the weights themselves.

For a source with delta δ over the base b, and the merge m:   landed = Σ(m − b)·δ ÷ Σδ².  1 is all of it, 0 none; another
source's delta counts in so far as it points the same way. `rounding_loss` is the share of Σδ² at elements where the output has
the base's value although the recipe moves them (additive methods only; elsewhere only the engine knows what was meant to move).

For methods that add weighted deltas (linear, task_arithmetic) the expected landing is computed too and must be met; for methods
that select or rotate there is no closed form, and the check asks for a landing that is neither zero nor beyond all weights.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from mcp_server.formats.checkpoint import FLOATS, StoredTensor
from mcp_server.formats.lora import Adapter, Change
from mcp_server.formats.recipe import as_number, resolve
from mcp_server.schemas.evidence import Check
from mcp_server.steps.verify.merge import Merge, Opened
from mcp_server.steps.verify.reading import read_rows, rows_of, spans

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

ADDITIVE: Final = frozenset({"linear", "task_arithmetic"})
SAMPLED_TENSORS: Final = 32
TOLERANCE: Final = 0.05
"""Of the expected landing. Rounding to bf16 moves a LoRA delta by 13 to 18 % of its length, nearly all of it sideways."""
VANISHED: Final = 0.02
BEYOND: Final = 3.0


@dataclass
class Landing:
    landed: dict[str, float | None] = field(default_factory=dict)
    rounding_loss: dict[str, float | None] = field(default_factory=dict)
    checks: list[Check] = field(default_factory=list)


@dataclass
class _Sums:
    along: float = 0.0
    expected: float = 0.0
    energy: float = 0.0
    undone: float = 0.0


def measure(merge: Merge, *, full: bool) -> Landing:
    """Landing per source. Recorded figures of the engine are kept where the sources are not here to measure again."""
    record = merge.provenance
    recorded = Landing(dict(record.landed), dict(record.rounding_loss)) if record else Landing()
    if merge.recipe is None:
        return Landing(checks=[Check(name="landed", passed=None, detail="no recipe: what should have landed is unknown")])
    if merge.recipe.kind != "merge" or merge.recipe.slices or merge.recipe.method == "passthrough":
        return recorded
    if merge.base is None or merge.missing or not merge.sources:
        reason = "; ".join(f"{name}: {why}" for name, why in merge.missing.items()) or "the recipe names no base to compare with"
        known = any(value is not None for value in recorded.landed.values())
        recorded.checks.append(
            Check(
                name="landed",
                passed=True if known else None,
                detail=f"{'as the engine counted' if known else 'unknown'}; {reason}",
            )
        )
        return recorded
    sums = _sums(merge, full=full)
    found = Landing()
    for name, total in sums.items():
        found.landed[name] = total.along / total.energy if total.energy else None
        found.rounding_loss[name] = (
            recorded.rounding_loss.get(name)
            if recorded.rounding_loss.get(name) is not None
            else total.undone / total.energy
            if total.energy and merge.recipe.method in ADDITIVE
            else None
        )
    found.checks.append(_judge(merge, sums, found, full=full))
    return found


def _sums(merge: Merge, *, full: bool) -> dict[str, _Sums]:
    import numpy as np

    assert merge.base is not None
    sums = {name: _Sums() for name in merge.sources}
    weights = _weights(merge)
    for name in _chosen(merge, full=full):
        base = merge.base.tensors[name]
        for span in spans(base, full=full):
            deltas = {source: _delta(opened, name, base, span) for source, opened in merge.sources.items()}
            known = {source: delta for source, delta in deltas.items() if delta is not None}
            if not known:
                continue
            moved = _moved(merge, name, base, span)
            ideal = sum((weights[s] * d for s, d in known.items() if weights.get(s) is not None), np.zeros_like(moved))
            for source, delta in known.items():
                total = sums[source]
                wide = delta.astype(np.float64)
                total.energy += float((wide * wide).sum())
                total.along += float((moved * wide).sum())
                total.expected += float((ideal * wide).sum())
                total.undone += float((wide * wide)[(moved == 0) & (ideal != 0)].sum())
    return sums


def _chosen(merge: Merge, *, full: bool) -> list[str]:
    """Matrices that some source changes, spread evenly over the model; all of them for `full`."""
    assert merge.base is not None
    names = []
    for name, tensor in merge.base.tensors.items():
        if len(tensor.shape) < 2 or tensor.dtype not in FLOATS:
            continue
        if not merge.is_adapter and (name not in merge.tensors or merge.tensors[name].shape != tensor.shape):
            continue
        if any(opened.adapter is None or name in opened.adapter.changes for opened in merge.sources.values()):
            names.append(name)
    if full or len(names) <= SAMPLED_TENSORS:
        return names
    return [names[i * len(names) // SAMPLED_TENSORS] for i in range(SAMPLED_TENSORS)]


def _delta(opened: Opened, name: str, base: StoredTensor, span: tuple[int, int]) -> Array | None:
    """The source's delta on these rows; null when it does not touch the tensor."""
    if opened.adapter is not None:
        return _change(opened.adapter, name, base, span)
    twin = opened.model.tensors.get(name)
    if twin is None or twin.shape != base.shape:
        return None
    return read_rows(twin, *span) - read_rows(base, *span)


def _change(adapter: Adapter, name: str, base: StoredTensor, span: tuple[int, int]) -> Array | None:
    import numpy as np

    change: Change | None = adapter.changes.get(name)
    if change is None:
        return None
    total = np.zeros((span[1] - span[0], rows_of(base)[1]), dtype=np.float32)
    if change.replacement is not None:
        total += read_rows(change.replacement, *span) - read_rows(base, *span)
    if (low := change.low_rank) is not None:
        a, b = (read_rows(part, 0, rows_of(part)[0]) for part in (low.a, low.b))
        left, right = (a.T, b.T) if low.transposed else (b, a)
        total += np.float32(low.scale) * (left[span[0] : span[1]] @ right)
    return total


def _moved(merge: Merge, name: str, base: StoredTensor, span: tuple[int, int]) -> Array:
    """merged − base on these rows, in float64."""
    import numpy as np

    if merge.adapter is not None:
        change = _change(merge.adapter, name, base, span)
        return np.zeros((span[1] - span[0], rows_of(base)[1])) if change is None else change.astype(np.float64)
    return read_rows(merge.tensors[name], *span).astype(np.float64) - read_rows(base, *span)


def _weights(merge: Merge) -> dict[str, float]:
    """The factor on each source's delta under an additive method; empty where the recipe varies it over the model."""
    recipe = merge.recipe
    if recipe is None or recipe.method not in ADDITIVE:
        return {}
    groups = recipe.groups()
    if len(groups) != 1:
        return {}
    group = groups[0]
    given: dict[str, float] = {}
    total = 0.0
    for source in group.sources:
        setting = next(group.settings("weight", source), None)
        value = as_number(setting) if not isinstance(setting, list | dict) else None
        if value is None and (source.model != group.base or recipe.method == "linear"):
            return {}
        total += value or 0.0
        name = next((n for n, ref in merge.refs.items() if ref == source.model), None)
        if name is not None and value is not None:
            given[name] = value
    scale = 1.0
    if recipe.method == "task_arithmetic":
        scale = as_number(resolve(group.settings("lambda"), "", default=1.0)) or 1.0
        if resolve(group.settings("normalize"), "", default=False):
            others = sum(given.values())
            scale = scale / others if others else scale
    elif resolve(group.settings("normalize"), "", default=True):
        scale = 1.0 / total if total else 1.0
    elif abs(total - 1.0) > 1e-6:
        return {}  # an unnormalised average scales the base as well: not a sum of deltas over it
    return {name: value * scale for name, value in given.items()}


def _judge(merge: Merge, sums: dict[str, _Sums], found: Landing, *, full: bool) -> Check:
    depth = "all weights" if full else f"{min(SAMPLED_TENSORS, len(_chosen(merge, full=False)))} tensors sampled"
    weights = _weights(merge)
    silent = [name for name, total in sums.items() if not total.energy]
    if silent:
        return Check(name="landed", passed=False, detail=f"{silent[0]} does not differ from the base: nothing can land")
    figures = {name: value for name, value in found.landed.items() if value is not None}
    shown = ", ".join(f"{name} {value:.3f}" for name, value in figures.items())
    for name, value in figures.items():
        expected = sums[name].expected / sums[name].energy if name in weights else None
        if expected is not None and abs(value - expected) > TOLERANCE * max(1.0, abs(expected)):
            detail = f"{name} landed {value:.3f}, the recipe implies {expected:.3f} ({depth})"
            return Check(name="landed", passed=False, detail=detail)
        if expected is None and not VANISHED < value < BEYOND and not _meant_to_vanish(merge, name):
            return Check(name="landed", passed=False, detail=f"{name} landed {value:.3f}: the merge does not hold it ({depth})")
    how = (
        "as the recipe implies" if weights else f"no closed form under {merge.recipe.method if merge.recipe else '?'}, plausible"
    )
    return Check(name="landed", passed=True, detail=f"{shown}; {how} ({depth})")


def _meant_to_vanish(merge: Merge, name: str) -> bool:
    """True when the recipe gives the source a weight of (nearly) zero, or a negative one, or one that varies."""
    assert merge.recipe is not None
    for group in merge.recipe.groups():
        for source in group.sources:
            if source.model == merge.refs.get(name):
                setting = next(group.settings("weight", source), None)
                value = as_number(setting) if not isinstance(setting, list | dict) else None
                varies = isinstance(setting, list | dict) or (merge.recipe.method or "") in ("slerp", "nearswap", "arcee_fusion")
                return varies or (value is not None and value < 0.1)
    return False
