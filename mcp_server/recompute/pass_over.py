"""All tensors of a merge against what its recipe makes of the sources: every block, or a sample of each tensor."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

from mcp_server.formats.tensors import StoredTensor
from mcp_server.recompute.adapters import CannotCompute, adapted_rows
from mcp_server.recompute.compare import COUNTED, Precision, Tally
from mcp_server.recompute.core import prepare_core
from mcp_server.recompute.fp8 import Fp8
from mcp_server.recompute.inputs import Block, Made
from mcp_server.recompute.methods import prepare, reads_whole
from mcp_server.recompute.names import Names, Planned
from mcp_server.recompute.reading import MANTISSA, is_float, read_rows, readable, rows_of, same_values, spans
from mcp_server.recompute.values import Value

if TYPE_CHECKING:
    from mcp_server.recompute.merge import Merge

WHOLE_ELEMENTS: Final = 1 << 22
WHOLE_BUDGET: Final = 1 << 26
"""When sampling, methods that need a whole tensor are computed on tensors up to this size, and on larger ones up to this sum."""
CLOSELY: Final = 24
"""So many wrong tensors are looked at for other orders of their values."""
ADDITIVE: Final = frozenset({"linear", "task_arithmetic"})
DTYPES: Final = {"bfloat16": "BF16", "float16": "F16", "float32": "F32", "float64": "F64"}


@dataclass
class Sums:
    """For one source's delta δ: Σ(m−b)·δ, Σδ², and Σδ² where the output has the base's value although it should move."""

    along: float = 0.0
    energy: float = 0.0
    undone: float = 0.0


@dataclass
class Likeness:
    """Products of the full models' deltas with each other, and with themselves, and of the base with itself.

    `slopes`: for each model and matrix, the slope of its weights on the base's, ⟨model, base⟩ ÷ ⟨base, base⟩. `share`: how much
    of the base itself the recipe leaves in the result, 1 − Σ of the factors on the deltas; None where the method has no such
    number.
    """

    between: dict[tuple[str, str], list[float]] = field(default_factory=dict)
    base: float = 0.0
    slopes: dict[str, list[float]] = field(default_factory=dict)
    share: float | None = None

    def add(self, base: Any, deltas: dict[str, Any]) -> None:
        self.base += float((base * base).sum())
        names = list(deltas)
        for i, one in enumerate(names):
            for other in names[i + 1 :]:
                sums = self.between.setdefault((one, other), [0.0, 0.0, 0.0])
                sums[0] += float((deltas[one] * deltas[other]).sum())
                sums[1] += float((deltas[one] ** 2).sum())
                sums[2] += float((deltas[other] ** 2).sum())

    def add_slope(self, label: str, along: float, energy: float) -> None:
        if energy:
            self.slopes.setdefault(label, []).append(1 + along / energy)


@dataclass
class Recomputed:
    """`wrong`: tensor → its tally, or a sentence. `unknown`: tensor → why it could not be computed.

    `meant`: tensor → its shape, and the first values that it should have.
    """

    compared: int = 0
    skipped: int = 0
    wrong: dict[str, Tally | str] = field(default_factory=dict)
    unknown: dict[str, str] = field(default_factory=dict)
    strange: list[str] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)
    landed: dict[str, Sums] = field(default_factory=dict)
    untouched: list[bool] = field(default_factory=list)
    likeness: Likeness = field(default_factory=Likeness)
    meant: dict[str, tuple[tuple[int, ...], Any]] = field(default_factory=dict)
    error: float | None = None

    def words(self, name: str) -> str:
        """What is wrong with a tensor: where it is another one's, whose."""
        tally = self.wrong[name]
        if isinstance(tally, str):
            return tally
        if COUNTED not in tally.said:
            return tally.said
        owners = [other for other, (shape, meant) in self.meant.items() if other != name and tally.is_meant_for(shape, meant)]
        return f"holds what belongs into {owners[0]}" if len(owners) == 1 else tally.said


def recompute(merge: Merge, *, full: bool, most: int | None = None) -> Recomputed:
    """Compute and compare. The recipe and all of its models must be there.

    `most`: of tensors that must be read whole, about so many elements are computed, spread evenly over the model.
    """
    assert merge.recipe is not None
    output = merge.tensors if not merge.is_adapter else _adapted_tensors(merge)
    names = Names(merge.recipe, merge.by_ref, output, merge.folder, ours=merge.ours)
    found = Recomputed(landed={name: Sums() for name in merge.sources})
    if not merge.is_adapter:
        found.absent = [name for name in names.expected() if name not in output and not _is_twin(names, name)]
    budget, credit = WHOLE_BUDGET, 0.0
    share = min(1.0, most / max(1, sum(stored.count for stored in output.values()))) if most is not None else 1.0
    squares = [0.0, 0.0]
    for name, stored in output.items():
        planned = names.plan(name)
        if planned.made is not None and not full and not _on_cores(merge, planned.made.name) and reads_whole(planned.made):
            credit += share * stored.count
            large = stored.count > WHOLE_ELEMENTS
            if (share < 1.0 and credit < stored.count) or (large and stored.count > budget):
                found.skipped += 1
                continue
            credit -= stored.count
            budget -= stored.count if large else 0
        try:
            _tensor(merge, planned, stored, found, squares, full=full)
        except CannotCompute as reason:
            found.unknown[name] = str(reason)
    if merge.is_adapter and squares[1]:
        found.error = math.sqrt(squares[0] / squares[1])
    return found


def _on_cores(merge: Merge, name: str) -> bool:
    """Whether the method worked on the core of a tensor's factors, as the record says; what is stored whole has none."""
    said = merge.ours and merge.provenance is not None and "space" in merge.provenance.settings
    return said and merge.adapter is not None and name not in merge.adapter.replaced


def _adapted_tensors(merge: Merge) -> dict[str, StoredTensor]:
    """The base's tensors that the output adapter, or one of the sources', changes."""
    assert merge.base is not None
    assert merge.adapter is not None
    touched = set(merge.adapter.touched)
    for source in merge.sources.values():
        touched |= source.adapter.touched if source.adapter else set()
    return {name: tensor for name, tensor in merge.base.tensors.items() if name in touched}


def _is_twin(names: Names, name: str) -> bool:
    """Whether a loader takes an absent tensor from its tied twin: then the donor's twin holds the same values."""
    donor, stored = names.donor, names.donor.tensors.get(name)
    if (
        stored is None
        or donor.embedding is None
        or donor.embedding == name
        or stored.shape != donor.tensors[donor.embedding].shape
    ):
        return False
    return same_values(stored, donor.tensors[donor.embedding], full=False)


def _tensor(merge: Merge, planned: Planned, stored: StoredTensor, found: Recomputed, squares: list[float], *, full: bool) -> None:
    if planned.wrong:
        found.compared += 1
        found.wrong[planned.name] = planned.wrong
        return
    if planned.why:
        raise CannotCompute(planned.why)
    if planned.copied is not None:
        _copied(merge, planned, stored, found, full=full)
        return
    made = planned.made
    if made is None:
        found.strange.append(planned.name)
        return
    if not readable(stored.dtype):
        raise CannotCompute(f"{stored.dtype} values are not read here")
    seed = merge.provenance.seed if merge.ours and merge.provenance else None
    precision = _precision(merge, stored, made)
    begin = prepare_core if _on_cores(merge, made.name) else prepare
    compute = begin(made, seed, 2.0 ** -MANTISSA[precision.worked_in] if precision.worked_in else 0.0)
    tally = Tally(made.name, made.shape, precision, [operand.label for operand in made.operands])
    folded = sum(abs(o.settings.get("weight", 1.0)) * o.value.foldings for o in made.operands)
    beside = _base_beside(merge, made)
    untouched = made.base is not None
    along = dict.fromkeys((operand.label for operand in made.operands if not operand.value.adapted), 0.0)
    energy = 0.0
    fp8, misfit = None if merge.is_adapter else Fp8.of(made, stored, ours=merge.ours), ""
    for span in fp8.spans(full=full) if fp8 else spans(made.shape, full=full):
        block = compute(span)
        if merge.is_adapter:
            block = _over_base(merge, made, block, span)
            values, slack = _adapter_rows(merge, made, block, span)
            squares[0] += float(((values - block.expected) ** 2).sum())
            squares[1] += float(((block.expected - block.base) ** 2).sum()) if block.base is not None else 0.0
        else:
            values, slack = read_rows(stored, *span), fp8.half_step(block.expected, span) if fp8 else 0.0
            misfit = misfit or (fp8.fault(block.expected, span) if fp8 else "")
        tally.add(span[0], block, values, folded, slack, beside.rows(span)[0] if beside is not None else None)
        land(merge, made, block, values, found)
        untouched = untouched and not any(delta.any() for delta in block.deltas)
        if block.base is not None and len(made.shape) > 1:
            energy += float((block.base**2).sum())
            for operand, delta in zip(made.operands, block.deltas, strict=True):
                if operand.label in along:
                    along[operand.label] += float((block.base * delta).sum())
    wrong = _settled(found, made, tally, misfit)
    if untouched:
        found.untouched.append(wrong)
    for label, sum_ in along.items():
        found.likeness.add_slope(label, sum_, energy)
    if "lambda" in made.shared:
        found.likeness.share = max(found.likeness.share or 0.0, _share_of_base(made))


def _base_beside(merge: Merge, made: Made) -> Value | None:
    """The tensor of a base that was given, where the method uses none: what was left as it is can then be told."""
    if made.base is not None or merge.is_adapter or merge.base is None or any(o.label == merge.base.label for o in made.operands):
        return None
    return merge.base.value(made.name, made.shape)


def _settled(found: Recomputed, made: Made, tally: Tally, misfit: str) -> bool:
    """Note what was seen of one tensor; returns whether its values are wrong."""
    if tally.undecided and not tally.wrong:
        raise CannotCompute(f"what {made.method} selects here hangs on the rounding of its arithmetic")
    found.compared += 1
    wrong = bool(tally.wrong) or tally.drifted() is not None
    if tally.meant is not None:
        found.meant[made.name] = (made.shape, tally.meant)
    if wrong or misfit:
        tally.settle(closely=len(found.wrong) < CLOSELY)
        found.wrong[made.name] = tally if wrong else misfit
    return wrong


def _share_of_base(made: Made) -> float:
    """How much of the base itself a sum of deltas leaves in the result."""
    weights = 1.0 if made.shared["normalize"] else sum(operand.settings["weight"] for operand in made.operands)
    return float(abs(1 - made.shared["lambda"] * weights))


def _over_base(merge: Merge, made: Made, block: Block, span: tuple[int, int]) -> Block:
    """The block as a change of the model that the adapters are put on, where the method knows no base (linear)."""
    value = merge.base.value(made.name, made.shape) if merge.base is not None and block.base is None else None
    if value is None:
        return block
    base, _ = value.rows(span)
    return replace(block, base=base, deltas=[values - base for values in block.deltas])


def _adapter_rows(merge: Merge, made: Made, block: Block, span: tuple[int, int]) -> tuple[Any, Any]:
    """(the base's rows as the output adapter makes them, what rounding its factors to their dtype can move)."""
    assert merge.adapter is not None
    if block.base is None:
        raise CannotCompute("an adapter's change needs a base to be measured from")
    rows, terms = adapted_rows(merge.adapter, made.name, made.shape, block.base, span)
    coarsest = min((MANTISSA[t.dtype] for t in merge.tensors.values() if is_float(t.dtype)), default=23)
    return rows, terms * 2.0 ** (1 - coarsest)


def _precision(merge: Merge, stored: StoredTensor, made: Made) -> Precision:
    """How exactly the output can be expected: by its dtype, and by who computed it."""
    if merge.is_adapter:
        return Precision("F32")
    if merge.ours:
        return Precision("F32" if stored.packed is not None else stored.dtype)
    asked = merge.recipe.dtype if merge.recipe and not merge.assumed else None
    inputs = [operand.value.stored.dtype for operand in made.operands]
    coarsest = min((d for d in [stored.dtype, *inputs] if is_float(d)), key=lambda d: MANTISSA[d])
    worked = DTYPES.get((asked or "").removeprefix("torch."), coarsest if asked is None else stored.dtype)
    return Precision(stored.dtype, worked, worked, sum(operand.value.foldings for operand in made.operands) > 1)


def _copied(merge: Merge, planned: Planned, stored: StoredTensor, found: Recomputed, *, full: bool) -> None:
    """Integers and buffers come from the donor as they are; another source's are no damage either."""
    assert planned.copied is not None
    twins = [planned.copied.stored]
    for source in merge.by_ref.values():
        other = source.tensors.get(planned.name)
        twins += [other] if other is not None else []
    if not readable(stored.dtype):
        raise CannotCompute(f"{stored.dtype} values are not read here")
    found.compared += 1
    if not any(readable(t.dtype) and t.shape == stored.shape and same_values(stored, t, full=full) for t in twins):
        found.wrong[planned.name] = "is copied from no source: its values are those of none"


def land(merge: Merge, made: Made, block: Block, values: Any, found: Recomputed) -> None:
    """Sums for the share of every source's delta that arrived; only matrices, which hold nearly all of it.

    Values that are no numbers count as not moved.
    """
    import numpy as np

    if block.base is None:
        base, deltas = _linear_deltas(merge, made, block)
    else:
        base, deltas = block.base, {o.label: d for o, d in zip(made.operands, block.deltas, strict=True)}
    if base is None or min(rows_of(made.shape)) < 1 or len(made.shape) < 2:
        return
    moved = np.where(np.isfinite(values), values - base, 0.0)
    whole = {o.label for o in made.operands if not o.value.adapted}
    found.likeness.add(base, {label: delta for label, delta in deltas.items() if label in whole})
    for label, delta in deltas.items():
        if label not in found.landed:
            continue
        total, energy = found.landed[label], delta * delta
        total.along += float((moved * delta).sum())
        total.energy += float(energy.sum())
        if made.method in ADDITIVE:
            total.undone += float(energy[(moved == 0) & (block.expected != base)].sum())


def _linear_deltas(merge: Merge, made: Made, block: Block) -> tuple[Any, dict[str, Any]]:
    """linear knows no base; its deltas are measured from the one that is among its inputs, if there is one."""
    values = {operand.label: delta for operand, delta in zip(made.operands, block.deltas, strict=True)}
    if merge.base is None or merge.base.label not in values or made.method not in ADDITIVE:
        return None, {}
    base = values.pop(merge.base.label)
    return base, {label: value - base for label, value in values.items()}


__all__ = ["Recomputed", "land", "recompute"]
