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

from mcp_server.engine.blocks import BLOCK_ELEMENTS
from mcp_server.engine.plan import MergePlan
from mcp_server.engine.signatures import SIGNATURES

INTERPRETER_BYTES: Final = 120_000_000
"""Python, numpy, numba and its compiled kernels: measured 75–95 MB on Linux x86-64, Python 3.11, numpy 2.5, numba 0.66."""

_COUNTS_BYTES: Final = 8 * (1 << 15 | 1 << 16)
_FIXED_BUFFERS: Final = 6
"""raw, reference, out, rounded, grid, update: float32 each at most."""
_WRITE_BUFFERS_AHEAD: Final = 4


@dataclass(frozen=True, slots=True)
class MergeShape:
    """What memory depends on. `deltas`: sources without the base. `row`: the longest last dimension of any tensor.

    `factors`: the most float32 values that the low-rank factors of one tensor hold together, Σ rank·(rows + columns).
    """

    method: str
    deltas: int
    threads: int
    row: int
    factors: int = 0


def peak_anon(shape: MergeShape) -> dict[str, int]:
    """Part → bytes; their sum is the bound."""
    block = max(BLOCK_ELEMENTS, shape.row)
    thinning = SIGNATURES[shape.method].sparsify if shape.method in SIGNATURES else "none"
    per_thread = 4 * block * (_FIXED_BUFFERS + shape.deltas * (2 if thinning != "none" else 1))
    if thinning == "della":
        per_thread += 32 * block
    counting = shape.deltas * _COUNTS_BYTES * (2 if thinning == "outliers" else 1) if thinning in ("magnitude", "outliers") else 0
    return {
        "interpreter and libraries": INTERPRETER_BYTES,
        "block buffers": shape.threads * per_thread,
        "write buffers": (shape.threads + _WRITE_BUFFERS_AHEAD) * 4 * block,
        "selection counts": shape.threads * counting,
        "adapter factors": 3 * 4 * shape.factors,
    }


def shape_of(plan: MergePlan, threads: int) -> MergeShape:
    """The shape of a planned merge."""
    return MergeShape(
        method=plan.recipe.method,
        deltas=max(len(tensor.inputs) - (tensor.base is not None) for tensor in plan.tensors),
        threads=threads,
        row=max((tensor.shape[-1] for tensor in plan.tensors if len(tensor.shape) > 1), default=1),
        factors=max(
            sum(entry.low_rank.a.count + entry.low_rank.b.count for entry in tensor.inputs if entry.low_rank)
            for tensor in plan.tensors
        ),
    )


def factors_of(shapes: Iterable[tuple[int, ...]], ranks: Iterable[int]) -> int:
    """`MergeShape.factors` when only the base's shapes and the adapters' ranks are known: every matrix counts as adapted."""
    widest = max((math.prod(shape[:-1]) + shape[-1] for shape in shapes if len(shape) > 1), default=0)
    return widest * sum(ranks)
