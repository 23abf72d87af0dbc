"""What merging adapters into one adapter costs (`--output adapter`): the engine's own plan, read from headers, in numbers."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path

from mcp_server.engine.adapter_memory import peak_anon_of_adapter
from mcp_server.engine.adapter_plan import OVERSAMPLING, PASSES, AdapterPlan, plan_adapter
from mcp_server.formats.recipe import ModelRef
from mcp_server.formats.recipe.rewrite import rewrite_refs
from mcp_server.formats.refs import anchor_ref, resolve_ref
from mcp_server.formats.tensors import DTYPE_BYTES
from mcp_server.schemas.base import Space
from mcp_server.schemas.estimate import EngineEstimate, Seconds
from mcp_server.steps.estimate.budget import METADATA_BYTES, fits
from mcp_server.steps.estimate.costs import costs
from mcp_server.steps.estimate.stream import codecs_of, compiling, kernels_of, named


def adapter_cost(
    text: str,
    rank: int | None,
    ram: float | None,
    free: int | None,
    folder: Path | None,
    threads: int | None,
    whole: Sequence[str] = (),
    space: Space = "weights",
) -> EngineEstimate:
    """Memory, disk and time of the streaming engine's merge in adapter space; `ram` and `free` in bytes.

    Raises `Unsupported` when no adapter can stand for the recipe, `Malformed` when its method needs a rank, `NotFound` when a
    source is not here.
    """
    plan = plan_adapter(located(text, folder or Path.cwd()), rank, whole, space)
    parts = peak_anon_of_adapter(plan, threads or os.cpu_count() or 1) | compiling(_kernels(plan))
    disk = _out_bytes(plan) + METADATA_BYTES
    return EngineEstimate(
        peak_anon_bytes=sum(parts.values()),
        page_cache_bytes=_out_bytes(plan) + _read_bytes(plan),
        disk_bytes=disk,
        seconds=_seconds(plan),
        fits=fits(sum(parts.values()), disk, ram, free),
        breakdown=named(parts),
    )


def located(text: str, folder: Path) -> str:
    """The recipe with absolute paths. Hub ids stay, with their revisions: the engine looks them up in the local cache."""

    def anchored(ref: ModelRef) -> ModelRef:
        names = (("base", ref.base), ("adapter", ref.adapter))
        return ref.model_copy(update={name: _anchored(part, folder) for name, part in names if part})

    return rewrite_refs(text, anchored)


def _anchored(ref: str, folder: Path) -> str:
    return resolve_ref(ref, folder) if ref.startswith("demo:") else anchor_ref(ref, folder)


def _kernels(plan: AdapterPlan) -> list[str]:
    stored = {entry.stored.dtype for module in plan.modules for entry in module.plan.inputs} if not plan.exact else set()
    stored |= {part.dtype for module in plan.modules for part in module.factors()}
    methods = [] if plan.exact else kernels_of(plan.merge.recipe.method)
    return [*codecs_of([2] if "BF16" in stored else []), *methods]


def _out_bytes(plan: AdapterPlan) -> int:
    return sum(DTYPE_BYTES[plan.dtype] * math.prod(shape) for shape in plan.shapes().values())


def _read_bytes(plan: AdapterPlan) -> int:
    whole = (entry.stored.nbytes for saved in plan.saved for entry in saved.plan.inputs)
    return sum(part.nbytes for module in plan.modules for part in module.factors()) + sum(whole)


def _seconds(plan: AdapterPlan) -> Seconds:
    """Copying for the exact sum; for an SVD, the merge and its products with a few columns, once for each pass."""
    constants, disk = costs().stream, costs().disk
    moved = _read_bytes(plan) + _out_bytes(plan)
    compute = 0.0
    for module in plan.modules if not plan.exact and plan.space == "weights" else ():
        elements = math.prod(module.plan.shape)
        columns = module.rank + OVERSAMPLING + sum(entry.factors.rank for entry in module.plan.inputs if entry.factors)
        compute += PASSES * elements * (constants.ns_per_element + columns * constants.ns_per_product) * 1e-9
    return Seconds(
        low=round(constants.start_seconds / 4 + compute / 2 + moved / disk.fast_bytes_per_second, 1),
        high=round(constants.start_seconds * 2 + compute * 2 + moved / disk.slow_bytes_per_second, 1),
    )
