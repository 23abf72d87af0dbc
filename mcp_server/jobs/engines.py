"""Which engine runs a recipe, and with what settings.

`auto` takes the streaming engine if it covers the recipe, else mergekit, and never one whose estimate exceeds the budget: it
stops with the options instead. The budget is what the request names, else the operator's, else this machine's or container's.
"""

from __future__ import annotations

import importlib.util
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mcp_server.engine.coverage import covers
from mcp_server.errors import BadInput, DoesNotFit, NotFound, Unsupported
from mcp_server.formats.checkpoint import Checkpoint, open_checkpoint
from mcp_server.formats.identity import architecture_name
from mcp_server.formats.recipe import read_recipe
from mcp_server.formats.tensor_names import stacks
from mcp_server.jobs.ask import ask_planner
from mcp_server.schemas.base import EngineId
from mcp_server.schemas.estimate import EngineEstimate, Estimate
from mcp_server.schemas.job import MergeRequest
from mcp_server.system import settings
from mcp_server.system.machine import GIB, gib, limit_bytes

WORKERS: Final[dict[EngineId, str]] = {"stream": "mcp_server.workers.stream", "mergekit": "mcp_server.workers.mergekit"}
_SHARD_SETTING: Final = "--out-shard-size"


@dataclass(frozen=True, slots=True)
class Choice:
    engine: EngineId
    worker: str
    shard_size: int
    estimate_bytes: int | None = None


def choose(request: MergeRequest) -> Choice:
    """The engine that was asked for, or for `auto` the first that covers the recipe and fits.

    Raises `Unsupported` when the engine that was asked for does not do the recipe, `DoesNotFit` with the options.
    """
    from mcp_server.steps.estimate import estimate  # reads rules and engine tables: only merges pay for it

    split = request.workers > 1 or request.ray is not None
    if split and (request.engine == "mergekit" or request.output == "adapter"):
        reason = "the mergekit engine cannot" if request.engine == "mergekit" else "an adapter is one small file"
        raise BadInput(f"--workers and --ray split a merge by output file; {reason}", "leave them out")
    if request.output_format and request.engine == "mergekit":
        reason = "mergekit writes 16 and 32 bits only"
        raise BadInput(f"--output-format {request.output_format}: {reason}", "leave it out, or use engine 'stream'")
    ram_gib = request.ram_gib or settings.load().ram_gib or limit_bytes() / GIB
    costs = estimate(
        request.recipe,
        ram_gib=ram_gib,
        out=Path(request.out),
        shard_size=request.shard_size,
        threads=request.threads,
        output=request.output,
        output_format=request.output_format,
        rank=request.rank,
        space=request.space,
        whole=request.whole,
    )
    stream = costs.engines["stream"]
    if not stream.covers and request.engine != "mergekit" and request.output == "model":
        with suppress(NotFound):  # a hub id that the job will fetch
            covers(request.recipe)  # raises what is wrong for every engine
    if request.engine == "stream" and not stream.covers:
        raise Unsupported(f"the streaming engine cannot do this: {'; '.join(stream.why_not)}", "use engine 'mergekit' or 'auto'")
    automatic: list[EngineId] = ["stream"] if split else ["stream", "mergekit"]
    wanted: list[EngineId] = automatic if request.engine == "auto" else [request.engine]
    engines = [engine for engine in wanted if engine in costs.engines and costs.engines[engine].covers]
    if not engines:
        why = [f"{name}: {reason}" for name in wanted if name in costs.engines for reason in costs.engines[name].why_not]
        if why and stream.covers:
            raise Unsupported("; ".join(why), "use engine 'stream', which unpacks them")
        if why:
            raise Unsupported(
                f"no engine does this: {'; '.join(why)}", "merge unquantised models, or change what the stream engine lacks"
            )
        raise Unsupported(f"the {request.engine} engine does not make adapters", "use engine 'stream' or 'auto'")
    for engine in engines:
        if engine == "mergekit":
            _require_whole(request, stream.why_not)
        cost = costs.engines[engine]
        if cost.fits is not False:
            _require_room(request, cost.peak_anon_bytes, ram_gib)
            shard_size = int(cost.settings.get(_SHARD_SETTING, request.shard_size))
            return Choice(engine, WORKERS[engine], min(shard_size, request.shard_size), cost.peak_anon_bytes)
    raise _too_big(engines, costs, request)


def _require_room(request: MergeRequest, peak: int | None, ram_gib: float) -> None:
    """Raise `DoesNotFit` unless the memory takes as many processes as the request names. On Ray each task declares its own."""
    if request.workers > 1 and request.ray is None and peak is not None and request.workers * peak > ram_gib * GIB:
        most, together = max(1, int(ram_gib * GIB // peak)), gib(request.workers * peak)
        raise DoesNotFit(
            f"{request.workers} processes hold up to {gib(peak)} each, {together} together; there are {ram_gib:.1f} GiB",
            f"use --workers {most}",
        )


def _require_whole(request: MergeRequest, why: list[str]) -> None:
    """Raise `Unsupported` when mergekit refuses the recipe or would leave tensors out; asked where its templates may not fit.

    Its planner takes 6 to 20 s to answer. Models that are not here cannot be asked about: the job compares the output's names.
    """
    recipe = read_recipe(request.recipe)
    if recipe.kind != "merge":
        return
    try:
        models = [open_checkpoint(ref.base_ref) for ref in recipe.references()]
        if all(_has_template(model) for model in models):
            return
        problems = ask_planner(request.recipe, Path(request.recipe_folder or Path.cwd()))
    except NotFound:
        return
    if problems:
        reason = f"only mergekit does this ({'; '.join(why)})" if why else "mergekit was asked for"
        raise Unsupported(f"{reason}, and its planner answers: {'; '.join(problems)}", "change what the streaming engine lacks")


def _has_template(model: Checkpoint) -> bool:
    """Whether mergekit ships a template of this class, and the model has the one stack of layers that templates describe best."""
    found = importlib.util.find_spec("mergekit")
    name = architecture_name(model.config)
    if found is None or not found.submodule_search_locations or name is None:
        return False
    folder = Path(found.submodule_search_locations[0]) / "_data" / "architectures"
    known = any(f'"{name}"' in file.read_text(encoding="utf-8") for file in folder.glob("*.json"))
    return known and len(stacks(model.tensors)) == 1


def _too_big(engines: list[EngineId], costs: Estimate, request: MergeRequest) -> DoesNotFit:
    parts = [f"{engine} needs {_cost(costs.engines[engine])}" for engine in engines]
    free = f" and {costs.disk_free_bytes / 1e9:.2f} GB of free disk" if costs.disk_free_bytes is not None else ""
    step = "give it more memory or disk (--ram-gib, another output folder)"
    if engines == ["mergekit"]:
        step += ", or use engine 'stream' if it covers the recipe: its memory does not grow with the model"
    if request.output == "model":
        step += "; LoRAs of one base can be merged into one adapter instead (--output adapter), which costs megabytes"
    return DoesNotFit(f"the merge does not fit: {'; '.join(parts)}; there are {costs.ram_gib:.2f} GiB of memory{free}", step)


def _cost(cost: EngineEstimate) -> str:
    return f"{gib(cost.peak_anon_bytes)} of memory and {cost.disk_bytes / 1e9:.2f} GB of disk"
