"""An upper bound on the anonymous memory of a streaming merge, from shapes alone. Imports no numpy.

The engine's memory is the interpreter with its libraries, buffers of a fixed number of elements per thread, and the factors of
the largest low-rank update. It does not grow with the number of parameters. The constants mirror the engine's allocations; a test
runs merges and compares. Page cache is not counted: it helps and is not needed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from mcp_server.engine.blocks import BLOCK_ELEMENTS, MOST_COLLECTED, MOST_COLLECTED_SHARE, SUMS_AT_ONCE
from mcp_server.engine.plan import MergePlan, TensorPlan
from mcp_server.engine.signatures import SIGNATURES
from mcp_server.formats.tensors import ITEM_BYTES

INTERPRETER_BYTES: Final = 80_000_000
"""Python, numpy, numba and its compiled kernels: measured 70–78 MB on Linux x86-64, Python 3.11, numpy 2.4, numba 0.68."""

_COUNTS_BYTES: Final = 8 * (1 << 15 | 1 << 16)
_WRITE_BUFFERS_AHEAD: Final = 4
_WHOLE_COPIES: Final = 3
"""Of a low-rank factor while it is read: as stored, widened, rearranged."""
_SCALE_BYTES: Final = 24
"""Held for each scale of an FP8 result: stored, decoded, fresh, the largest value under it, and copies while they change."""
_DIVERGENCES_BYTES: Final = 8 << 18
"""Eight bytes for each row of a tensor: a vocabulary of 262,144 rows."""


@dataclass(frozen=True, slots=True)
class MergeShape:
    """What memory depends on.

    `deltas`: sources without the base. `row`: the longest last dimension of any tensor. `largest`: elements of the largest
    tensor. `factors`: the most float32 values that the low-rank factors of one tensor hold together, Σ rank·(rows + columns).
    `stored_bytes`, `out_bytes`: the widest element among the inputs, and in the output. `held`: bytes that packed weights keep in
    memory while a tensor is merged (scales; codes that lie across its rows). `filters`: bytes of the lengths, angles and factors
    that a tensor's rows or columns have of their own.
    """

    method: str
    deltas: int
    threads: int
    row: int
    largest: int
    factors: int = 0
    stored_bytes: int = 4
    out_bytes: int = 4
    held: int = 0
    filters: int = 0
    repacks: bool = False
    """Whether results are stored as FP8 codes."""


def peak_anon(shape: MergeShape) -> dict[str, int]:
    """Part → bytes; their sum is the bound."""
    block = max(BLOCK_ELEMENTS, shape.row)
    signature = SIGNATURES.get(shape.method)
    sparsification = signature.sparsify if signature else "none"
    scores = shape.method in ("sce", "arcee_fusion")
    selects = sparsification in ("magnitude", "outliers") or scores
    kept = {"none": 0, "magnitude": 1}.get(sparsification, shape.deltas)  # by magnitude one at a time, to restore its norm
    has_reference = shape.factors > 0 or (signature is not None and signature.base != "ignored")
    narrows = shape.out_bytes < 4 or shape.repacks
    bytes_per_element = (
        shape.stored_bytes  # raw
        + 4 * has_reference
        + 4 * (shape.deltas + kept)
        + 4  # merged
        + 4 * narrows  # merged, rounded
        + 4 * (narrows and has_reference and (shape.repacks or shape.stored_bytes != shape.out_bytes))  # the reference, rounded
        + 5 * shape.repacks  # codes that are kept, and quotients
        + 4 * selects  # patterns found
        + 4 * (shape.factors > 0)  # an update beside its base
        + 24 * (sparsification == "della")  # order, ranks, probabilities
        + 8 * (shape.deltas + 2) * (shape.filters > 0)  # deltas and their products, or the sum, in float64
        + 4 * (shape.deltas + 1) * scores  # deltas again while scores are ranked, and the scores
    )
    cuts = shape.deltas * (2 if sparsification == "outliers" else 1) if selects else 0
    cuts = {"sce": 1, "arcee_fusion": 3}.get(shape.method, cuts)
    collected = min(MOST_COLLECTED, int(MOST_COLLECTED_SHARE * shape.largest) * cuts)
    return {
        "interpreter and libraries": INTERPRETER_BYTES,
        "block buffers": shape.threads * block * bytes_per_element,
        "write buffers": (shape.threads + _WRITE_BUFFERS_AHEAD) * shape.out_bytes * block,
        "selection": max(shape.threads * cuts * _COUNTS_BYTES, _COUNTS_BYTES + 4 * collected),
        "adapter factors": _WHOLE_COPIES * 4 * shape.factors,
        **({"row divergences": _DIVERGENCES_BYTES} if shape.method == "arcee_fusion" else {}),
        **({"filters": shape.filters} if shape.filters else {}),
        **({"packed weights": shape.held} if shape.held else {}),
    }


def shape_of(plan: MergePlan, threads: int) -> MergeShape:
    """The shape of a planned merge."""
    tensors = [tensor for tensor in plan.tensors if tensor.how not in ("copied", "scales")]
    inputs = [entry.stored for tensor in tensors for entry in tensor.inputs]
    return MergeShape(
        method=plan.recipe.method,
        deltas=max((len(tensor.inputs) - (tensor.base is not None) for tensor in tensors), default=1),
        threads=threads,
        row=max((tensor.shape[-1] for tensor in tensors if len(tensor.shape) > 1), default=1),
        largest=max((tensor.count for tensor in tensors), default=1),
        factors=max(
            (
                sum(part.count for entry in tensor.inputs for update in entry.updates for part in update.parts)
                for tensor in tensors
            ),
            default=0,
        ),
        stored_bytes=max((ITEM_BYTES[stored.dtype] for stored in inputs), default=4),
        out_bytes=max((4 if tensor.dtype == "float32" else 2 for tensor in tensors), default=4),
        filters=max(map(_filter_bytes, tensors), default=0),
        held=max(
            (
                sum(p.held_bytes for p in {id(p): p for p in (entry.stored.packed for entry in tensor.inputs) if p}.values())
                + (_SCALE_BYTES * tensor.form.scale.elements if tensor.form else 0)
                for tensor in tensors
            ),
            default=0,
        ),
        repacks=any(tensor.form for tensor in tensors),
    )


def _filter_bytes(tensor: TensorPlan) -> int:
    """Float64 sums, their temporaries and the factors, for each row, or for each column with the blocks that wait."""
    by_rows, apart = tensor.shared.get("filter_wise"), tensor.shared.get("nuslerp_flatten") is False
    if not (by_rows or apart) or not tensor.count:
        return 0
    columns = bool(apart and tensor.shared.get("nuslerp_row_wise"))
    filters = 1 if len(tensor.shape) < 2 else tensor.count // tensor.shape[0 if columns else -1]
    sources = len(tensor.inputs) - (tensor.base is not None)
    pairs = sources * (sources + 1) // 2
    return 8 * filters * (pairs * (4 + SUMS_AT_ONCE * columns) + 2 * sources + 4)


def factors_of(shapes: Iterable[tuple[int, ...]], ranks: Iterable[int]) -> int:
    """`MergeShape.factors` when only the base's shapes and the adapters' ranks are known: every matrix counts as adapted."""
    widest = max((math.prod(shape[:-1]) + shape[-1] for shape in shapes if len(shape) > 1), default=0)
    return widest * sum(ranks)
