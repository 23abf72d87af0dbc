"""Estimate a merge: an upper bound of what each engine holds, writes and takes, and whether that fits.

The bound is on anonymous memory, which cannot be reclaimed; page cache helps and is not needed. Nothing is read but headers, and
for models that are not here the table of well-known shapes stands in.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, Literal

from mcp_server.engine.coverage import covers
from mcp_server.errors import BadInput, MergingError, NotFound
from mcp_server.formats.hub.copies import looking
from mcp_server.formats.recipe import Recipe, read_recipe
from mcp_server.formats.refs import resolve_ref
from mcp_server.schemas.base import EngineId, OutputFormat, Space
from mcp_server.schemas.estimate import EngineEstimate, Estimate, Seconds
from mcp_server.steps.estimate import mergekit, stream
from mcp_server.steps.estimate.adapter import adapter_cost
from mcp_server.steps.estimate.budget import METADATA_BYTES, fits, free_disk
from mcp_server.steps.estimate.costs import costs
from mcp_server.steps.estimate.evidence import evaluate_cost, verify_cost
from mcp_server.steps.estimate.fp8 import fp8_cost
from mcp_server.steps.estimate.work import Work, work_of
from mcp_server.system.machine import GIB, gib

SHARD_SIZE: Final = 5_000_000_000


@looking()
def estimate(
    text: str,
    *,
    ram_gib: float | None = None,
    out: Path | None = None,
    folder: Path | None = None,
    shard_size: int = SHARD_SIZE,
    threads: int | None = None,
    output: Literal["model", "adapter"] = "model",
    output_format: OutputFormat | None = None,
    rank: int | None = None,
    whole: Sequence[str] = (),
    space: Space = "weights",
) -> Estimate:
    """Cost of a recipe for each engine. `folder` is what its relative paths are relative to; `shard_size` is in bytes.

    An adapter (`output`, with the `rank` that methods other than linear and task_arithmetic need) is made by the streaming engine
    alone; verifying and evaluating it are not estimated. So is a model in FP8 (`output_format`), whose size is that of its plan.
    Raises `BadInput` for options that do not go together, `Malformed` for a recipe that cannot be read, `NotFound` or `NotAModel`
    for a source whose size cannot be known, `Unsupported` when no adapter can stand for the recipe, or the result cannot be
    stored so.
    """
    _require_one_form(output, output_format, rank, space)
    recipe = read_recipe(text)
    ram = None if ram_gib is None else ram_gib * GIB
    free = free_disk(out) if out else None
    if output == "adapter":
        cost = adapter_cost(text, rank, ram, free, folder, threads, whole, space)
        found: dict[EngineId, EngineEstimate] = {"stream": cost}
        return Estimate(
            engines=found,
            recommended=recommended(found),
            ram_gib=ram_gib,
            disk_free_bytes=free,
            notes=_advice(found, ram_gib),
        )
    work = work_of(recipe, folder)
    why_not = stream_gaps(recipe, text, folder)
    by_stream = stream_cost(work, ram, free, why_not, threads)
    if output_format == "fp8":
        engines: dict[EngineId, EngineEstimate] = {"stream": fp8_cost(text, by_stream, ram, free, folder, threads)}
    else:
        engines = {"stream": by_stream, "mergekit": mergekit_cost(work, ram, free, shard_size)}
    notes = [f"sizes from {origin}" for origin in work.origins if origin != "headers"]
    return Estimate(
        engines=engines,
        recommended=recommended(engines),
        ram_gib=ram_gib,
        disk_free_bytes=free,
        verify=(verifying := verify_cost(work, ram)),
        evaluate=(evaluating := evaluate_cost(work, ram)),
        notes=notes + _advice(engines, ram_gib) + _few_bits({"verify": verifying, "evaluate": evaluating}, ram_gib),
    )


def _require_one_form(output: str, output_format: OutputFormat | None, rank: int | None, space: Space) -> None:
    """Raise `BadInput` where an option is about an adapter and the result a model, or the other way round."""
    if output == "adapter" and output_format:
        raise BadInput(f"--output-format {output_format}: an adapter is not quantised", "leave it out, or merge into a model")
    if output == "model" and (space != "weights" or rank is not None):
        option = f"--rank {rank}" if space == "weights" else f"--space {space}"
        raise BadInput(f"{option} is for adapters: a model is merged on its weights", "add --output adapter, or leave it out")


def stream_cost(work: Work, ram: float | None, free: int | None, why_not: list[str], threads: int | None) -> EngineEstimate:
    parts = stream.breakdown(work, threads)
    constants = costs().stream
    return EngineEstimate(
        peak_anon_bytes=sum(parts.values()),
        page_cache_bytes=work.read_bytes + work.out_bytes,
        disk_bytes=work.out_bytes + METADATA_BYTES,
        seconds=_seconds(work, constants.start_seconds, constants.ns_per_element, passes=2),
        fits=fits(sum(parts.values()), work.out_bytes + METADATA_BYTES, ram, free) if not why_not else False,
        breakdown=parts,
        covers=not why_not,
        why_not=why_not,
    )


def mergekit_cost(work: Work, ram: float | None, free: int | None, shard_size: int) -> EngineEstimate:
    """With adapters, a full copy of the base with each folded in lies on disk while the merge runs."""
    size = shard_size
    if ram is not None and mergekit.anon_bytes(work, size) > ram:
        size = min(shard_size, mergekit.smallest_shard(work, int(ram)) or 100_000_000)
    parts = mergekit.breakdown(work, size)
    copies = work.adapters * work.model_bytes
    disk = work.out_bytes + METADATA_BYTES + copies
    constants = costs().mergekit
    table = mergekit.working_set(work.method)
    scale = max(1.0, (work.inputs - 1) / 2)
    kinds = sorted({packing.kind for packing in work.packings})
    why_not = [f"it would average the codes of packed weights ({', '.join(kinds)}) as numbers"] if kinds else []
    settings = {} if size == SHARD_SIZE else {"--out-shard-size": str(size)}
    return EngineEstimate(
        peak_anon_bytes=sum(parts.values()),
        page_cache_bytes=work.read_bytes + work.out_bytes + copies,
        disk_bytes=disk,
        seconds=_seconds(work, constants.start_seconds, table.ns_per_element * scale, passes=1 + work.adapters),
        fits=fits(sum(parts.values()), disk, ram, free) if not why_not else False,
        breakdown=parts,
        settings=settings,
        covers=not why_not,
        why_not=why_not,
    )


def stream_gaps(recipe: Recipe, text: str, folder: Path | None) -> list[str]:
    """Why the stream engine cannot run this recipe. Headers are looked into only when every source is here."""
    if recipe.kind != "merge":
        return [f"{recipe.kind} recipes are run by mergekit only"]
    names = {part for ref in recipe.references() for part in (ref.base, ref.adapter) if part}
    resolved = {name: resolve_ref(name, folder or Path.cwd()) for name in names}
    absolute = all(name == path for name, path in resolved.items())
    try:
        with suppress(NotFound):  # a model that is neither here nor can be asked for on a hub
            return covers(text, headers=absolute)
        return covers(text, headers=False)
    except MergingError as error:
        return [error.message]


def recommended(engines: dict[EngineId, EngineEstimate]) -> EngineId | None:
    """stream when it covers the recipe and fits, else mergekit when that fits; None when neither does."""
    for name in ("stream", "mergekit"):
        engine = engines.get(name)
        if engine and engine.covers and engine.fits is not False:
            return "stream" if name == "stream" else "mergekit"
    return None


def _seconds(work: Work, start: float, ns_per_element: float, passes: int) -> Seconds:
    moved = work.read_bytes * passes + work.out_bytes
    compute = work.elements * ns_per_element * 1e-9
    disk = costs().disk
    fast = start + compute / 2 / max(1, min(4, (os.cpu_count() or 2) // 2)) + moved / disk.fast_bytes_per_second
    slow = start * 2 + compute * 2 + moved / disk.slow_bytes_per_second
    return Seconds(low=round(fast, 1), high=round(slow, 1))


def _few_bits(evidence: dict[str, EngineEstimate], ram_gib: float | None) -> list[str]:
    """In how few bits the steps after the merge hold weights that do not fit in 16."""
    return [
        f"{step} holds weights in {held.removeprefix('int')} bits, because 16 do not fit in {ram_gib:g} GiB{also}"
        for step, also in (("verify", ""), ("evaluate", ": base, sources and result alike, comparable with each other only"))
        if (held := evidence[step].settings.get("weights", "")).startswith("int") and evidence[step].fits
    ]


def _advice(engines: dict[EngineId, EngineEstimate], ram_gib: float | None) -> list[str]:
    if ram_gib is None or recommended(engines):
        return []
    needs = ", ".join(f"{name} {gib(engine.peak_anon_bytes)}" for name, engine in engines.items() if engine.covers)
    return [f"nothing fits {ram_gib:g} GiB: {needs}"]
