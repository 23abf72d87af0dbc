"""Estimate a plan before there is a recipe: from the base's name or headers, the strategy, and how many sources go in."""

from __future__ import annotations

from pathlib import Path

from mcp_server import catalog
from mcp_server.engine.memory import factors_of
from mcp_server.engine.signatures import SIGNATURES
from mcp_server.errors import BadInput
from mcp_server.formats.tensors import DTYPE_BYTES
from mcp_server.schemas.plan import EngineChoice, MemoryNeed, Plan
from mcp_server.steps.estimate import mergekit
from mcp_server.steps.estimate.evidence import evaluate_cost, verify_cost
from mcp_server.steps.estimate.run import SHARD_SIZE, mergekit_cost, stream_cost
from mcp_server.steps.estimate.shapes import TensorSize, model_shape
from mcp_server.steps.estimate.work import RANK_UNKNOWN, OutputTensor, Work
from mcp_server.system.machine import GIB


def estimate_plan(plan: Plan, folder: Path | None = None) -> EngineChoice | None:
    """The engine and settings for a plan, with the memory it needs. None when the plan merges nothing.

    `fits` is null when the base's size is not known, or no budget was given.
    """
    scenario, strategy = plan.scenario, plan.strategy
    if strategy is None:
        return None
    ram_gib = scenario.constraints.ram_gib if scenario.constraints else None
    method = catalog.strategy(strategy.id).merge_method
    covered = method in SIGNATURES
    name = scenario.base_model or next((s.base or s.ref for s in scenario.sources or [] if s.base or s.ref), None)
    work = _work(plan, name, folder) if name else None
    if work is None:
        note = "the size of the base is not known: name base_model, or download it"
        return EngineChoice(id="stream" if covered else "mergekit", fits=None, note=note)
    ram = None if ram_gib is None else ram_gib * GIB
    free = int(scenario.constraints.disk_gib * GIB) if scenario.constraints and scenario.constraints.disk_gib else None
    evidence = {
        what: MemoryNeed(peak_anon_bytes=cost.peak_anon_bytes, fits=cost.fits)
        for what, cost in (("verify", verify_cost(work, ram)), ("evaluate", evaluate_cost(work, ram)))
    }
    by_mergekit = mergekit_cost(work, ram, free, SHARD_SIZE)
    if covered:
        by_stream = stream_cost(work, ram, free, [], None)
        note = f"mergekit would hold {by_mergekit.peak_anon_bytes / GIB:.1f} GiB"
        peak = by_stream.peak_anon_bytes
        return EngineChoice(id="stream", fits=by_stream.fits, peak_anon_bytes=peak, evidence=evidence, note=note)
    settings: dict[str, object] = {}
    if ram is not None and (size := mergekit.smallest_shard(work, int(ram))) and size < SHARD_SIZE:
        settings["shard_size"] = size
    note = f"only mergekit does {strategy.id}"
    return EngineChoice(
        id="mergekit",
        settings=settings,
        fits=by_mergekit.fits,
        peak_anon_bytes=by_mergekit.peak_anon_bytes,
        evidence=evidence,
        note=note,
    )


def _work(plan: Plan, base: str, folder: Path | None) -> Work | None:
    try:
        shape = model_shape(base, folder)
    except BadInput:  # not here, no model, or no ref at all: whoever opens it says which
        return None
    sources = plan.scenario.sources or []
    width = DTYPE_BYTES.get(plan.dtype or "bfloat16", 2)
    count = max(2, len(sources)) + 1
    tensors = tuple(OutputTensor(t.name, t.elements, t.row, t.elements * width, width, (width,) * count) for t in shape.tensors)
    loras = [source for source in sources if source.kind == "lora"]
    adapter_bytes = sum(_lora_bytes(shape.tensors, source.rank or RANK_UNKNOWN) for source in loras)
    full = max(0, len(sources) - len(loras))
    return Work(
        method=catalog.strategy(plan.strategy.id).merge_method if plan.strategy else "",
        inputs=count,
        tensors=tensors,
        deltas=count - 1,
        adapters=len(loras),
        adapter_bytes=adapter_bytes,
        factors=factors_of([t.shape for t in shape.tensors], [s.rank or RANK_UNKNOWN for s in loras]),
        read_bytes=shape.nbytes * (1 + full) + adapter_bytes,
        model_bytes=shape.nbytes,
        origins=(shape.origin,),
    )


def _lora_bytes(tensors: tuple[TensorSize, ...], rank: int) -> int:
    """float32 factors on every linear projection."""
    return sum(4 * rank * sum(t.shape) for t in tensors if "_proj" in t.name and len(t.shape) == 2)
