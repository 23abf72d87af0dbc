"""An upper bound on the anonymous memory of a merge of adapters into one, from shapes alone. Imports no numpy."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from mcp_server.engine.adapter_plan import OVERSAMPLING, AdapterPlan, Module
from mcp_server.engine.blocks import BLOCK_ELEMENTS
from mcp_server.engine.memory import INTERPRETER_BYTES, peak_anon, shape_of

PLAIN_INTERPRETER_BYTES: Final = 60_000_000
"""Without a compiled kernel: measured 47–50 MB on Linux x86-64, Python 3.11, numpy 2.4. Only bf16 factors need one."""


def peak_anon_of_adapter(plan: AdapterPlan, threads: int) -> dict[str, int]:
    """Part → bytes; their sum is the bound."""
    if plan.exact:
        narrow = plan.dtype == "bfloat16" or any(part.dtype == "BF16" for module in plan.modules for part in module.factors())
        process = INTERPRETER_BYTES if narrow else PLAIN_INTERPRETER_BYTES
        parts = {"interpreter and libraries": process, "adapter factors": max(map(_concatenated, plan.modules), default=0)}
        if plan.saved:
            whole = peak_anon(shape_of(replace(plan.merge, tensors=tuple(saved.plan for saved in plan.saved)), threads))
            parts = {name: max(size, parts.get(name, 0)) for name, size in (parts | whole).items()}
        return parts
    if plan.space != "weights":
        parts = peak_anon(shape_of(replace(plan.merge, tensors=tuple(saved.plan for saved in plan.saved)), threads))
        return parts | {"cores of factors": max(map(_cored, plan.modules), default=0)}
    tensors = (*(module.plan for module in plan.modules), *(saved.plan for saved in plan.saved), *plan.left_out)
    parts = peak_anon(shape_of(replace(plan.merge, tensors=tensors), threads))
    del parts["write buffers"]
    return parts | {"truncated SVD": max(map(_factored, plan.modules), default=0)}


def _sides(module: Module) -> tuple[int, int]:
    rows, columns = module.plan.shape[-2:]
    return (columns, rows) if module.transposed else (rows, columns)


def _concatenated(module: Module) -> int:
    """A is read as float32 and joined; B is scaled in float64, joined, and rounded. The last B is still held."""
    rows, columns = _sides(module)
    return module.rank * module.experts * (2 * 4 * columns + (2 * 8 + 8 + 2 * 4) * rows)


def _cored(module: Module) -> int:
    """Factors of all sources in float64, stacked and decomposed: copies, singular vectors, workspace. Cores count little."""
    rows, columns = _sides(module)
    added = sum(entry.factors.rank for entry in module.plan.inputs if entry.factors)
    blocks = 4 * BLOCK_ELEMENTS * (len(module.plan.inputs) + 4)
    return 8 * added * 6 * (rows + columns) + 8 * added * added * 8 + blocks


def _factored(module: Module) -> int:
    """numpy factors in float64: copy, result and workspace of the longer side, beside basis and probe in float32."""
    rows, columns = module.plan.shape
    width = min(module.rank + OVERSAMPLING, rows, columns)
    return width * (2 * 4 * (rows + columns) + (3 * 8 + 2 * 4) * max(rows, columns))
