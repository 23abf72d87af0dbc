"""An upper bound on the anonymous memory of a merge in adapter space, from shapes alone. Imports no numpy.

Exact concatenation holds one module's factors; a truncated SVD holds the matrices of its range finder, a few columns wide, beside
the buffers of an ordinary merge. The full update of a matrix is never held. Neither grows with the number of parameters.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from mcp_server.engine.adapter_plan import OVERSAMPLING, AdapterPlan, Module
from mcp_server.engine.memory import INTERPRETER_BYTES, peak_anon, shape_of

PLAIN_INTERPRETER_BYTES: Final = 60_000_000
"""Without a compiled kernel: measured 47–50 MB on Linux x86-64, Python 3.11, numpy 2.4. Only bf16 factors need one."""


def peak_anon_of_adapter(plan: AdapterPlan, threads: int) -> dict[str, int]:
    """Part → bytes; their sum is the bound."""
    if plan.exact:
        narrow = any(part.dtype == "BF16" for module in plan.modules for part in module.factors())
        process = INTERPRETER_BYTES if narrow else PLAIN_INTERPRETER_BYTES
        return {"interpreter and libraries": process, "adapter factors": max(map(_concatenated, plan.modules))}
    tensors = tuple(module.plan for module in plan.modules)
    parts = peak_anon(shape_of(replace(plan.merge, tensors=tensors), threads))
    del parts["write buffers"]
    return parts | {"truncated SVD": max(map(_factored, plan.modules))}


def _sides(module: Module) -> tuple[int, int]:
    rows, columns = module.plan.shape
    return (columns, rows) if module.transposed else (rows, columns)


def _concatenated(module: Module) -> int:
    """A is read as float32 and joined; B is scaled in float64, joined, and rounded. The last B is still held."""
    rows, columns = _sides(module)
    return module.rank * (2 * 4 * columns + (2 * 8 + 8 + 2 * 4) * rows)


def _factored(module: Module) -> int:
    """numpy factors in float64: copy, result and workspace of the longer side, beside basis and probe in float32."""
    rows, columns = module.plan.shape
    width = min(module.rank + OVERSAMPLING, rows, columns)
    return width * (2 * 4 * (rows + columns) + (3 * 8 + 2 * 4) * max(rows, columns))
