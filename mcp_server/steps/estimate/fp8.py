"""What a merge costs whose result is stored in FP8: the engine's own plan, read from headers, in numbers."""

from __future__ import annotations

import os
from pathlib import Path

from mcp_server.engine.fp8_plan import in_fp8
from mcp_server.engine.layout import plan_layout
from mcp_server.engine.memory import peak_anon, shape_of
from mcp_server.engine.plan import MergePlan, make_plan
from mcp_server.formats.recipe import merge_recipe
from mcp_server.schemas.estimate import EngineEstimate, Seconds
from mcp_server.steps.estimate.adapter import located
from mcp_server.steps.estimate.budget import METADATA_BYTES, fits
from mcp_server.steps.estimate.stream import compiling, named

KERNELS = ("fp8_kernels.measure", "fp8_kernels.divide", "fp8_kernels.encode", "fp8_kernels.keep")
PASSES = 2
"""Blocks are computed twice where a scale goes on beyond them."""


def plan_in_fp8(text: str, folder: Path | None) -> MergePlan:
    """The plan of a recipe whose relative paths start from `folder`. Raises `Unsupported` where it cannot be stored in FP8."""
    return in_fp8(make_plan(merge_recipe(located(text, folder or Path.cwd()))))


def fp8_cost(
    text: str, plain: EngineEstimate, ram: float | None, free: int | None, folder: Path | None, threads: int | None
) -> EngineEstimate:
    """`plain`: the same merge in the recipe's dtype; `ram` and `free` in bytes. Raises what `plan_in_fp8` raises."""
    if not plain.covers:
        return plain
    plan = plan_in_fp8(text, folder)
    layout = plan_layout(plan.tensors, 1 << 62)
    compiled = {part: size for part, size in plain.breakdown.items() if part.startswith("compil")} | named(compiling(KERNELS))
    parts = named(peak_anon(shape_of(plan, threads or os.cpu_count() or 1))) | compiled
    disk = layout.file_bytes + METADATA_BYTES
    seconds = Seconds(low=plain.seconds.low, high=round(plain.seconds.high * PASSES, 1))
    changed = {
        "peak_anon_bytes": sum(parts.values()),
        "page_cache_bytes": plain.page_cache_bytes - plain.disk_bytes + disk,
        "disk_bytes": disk,
        "seconds": seconds,
        "fits": fits(sum(parts.values()), disk, ram, free),
        "breakdown": parts,
    }
    return plain.model_copy(update=changed)
