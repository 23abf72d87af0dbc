"""A bake-off: merge and measure candidates on the development split, choose, and report the winner once on the test split.

Worker inputs   request.json parameters:
    plan            path of a plan, or the plan itself
    out             folder for the table, the winner's recipe and the winner (OUT/merged)
    suites, data    suites and files of prompts to measure by
    grid            KEY=V1,V2 axes (default: the shortlist)
    tries           single candidates beside the grid: KEY=VALUE KEY=VALUE
    limit           prompts per suite for the full measurement; `quick_limit` for the first look (default 20); at or above `limit`
                    the first look is the whole measurement
    workers, ray    tasks at once on this machine, or the address of a Ray cluster
    cpus, memory_gib, gpus    what one task declares to the cluster
    seed            of every merge (default 0)
Worker outputs  result.json: `Sweep`; OUT/plan.yaml, OUT/sweep.json, OUT/sweep.md, OUT/recipe.yml, OUT/merged with its evaluation
Not covered     tuning inside a candidate; candidates are independent and a rerun continues after the last finished one.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from mcp_server.errors import from_dict
from mcp_server.formats.lineage import lineage_of
from mcp_server.formats.recipe import read_recipe
from mcp_server.formats.refs import resolve_ref
from mcp_server.schemas.evidence import Capability, Evaluation, Interval, Sweep, SweepCandidate
from mcp_server.schemas.job import SweepRequest
from mcp_server.schemas.plan import Plan
from mcp_server.steps.evaluate import Thresholds, load_thresholds
from mcp_server.steps.report import sweep_section
from mcp_server.steps.sweep import Candidate, choose, from_grid, hopeless, pareto_front
from mcp_server.steps.sweep.place import MERGED, opened_plan, require_sweep_place
from mcp_server.system.machine import GIB
from mcp_server.system.outputs import Kept
from mcp_server.workers.protocol import Job, run_worker
from mcp_server.workers.sweeping.executors import TRIAL, Executor, LocalExecutor, RayExecutor
from mcp_server.workers.sweeping.progress import Progress
from mcp_server.workers.sweeping.tasks import Step, Task

EVALUATE = "mcp_server.workers.evaluate"
STREAM = "mcp_server.workers.stream"
MERGEKIT = "mcp_server.workers.mergekit"


def main(job: Job) -> Sweep:
    request = job.request(SweepRequest)
    executor: Executor = RayExecutor(request.ray) if request.ray else LocalExecutor(request.workers)
    try:
        return sweep(request, job, executor)
    finally:
        executor.close()


def sweep(request: SweepRequest, job: Job, executor: Executor) -> Sweep:
    start = time.monotonic()
    limits = load_thresholds()
    plan, near = opened_plan(request)
    candidates = from_grid(plan, request.grid, near, request.tries)
    out = Path(request.out)
    require_sweep_place(out)
    out.mkdir(parents=True, exist_ok=True)
    bench = Bench(request, candidates, Kept(out), _names(plan, near), job.roots)
    saved = yaml.safe_dump(plan.model_dump(mode="json", exclude_none=True), sort_keys=False, allow_unicode=True)
    bench.kept.write("plan.yaml", saved)
    progress = Progress(job)
    progress.tell("base and sources", 0, len(candidates), f"{len(candidates)} candidates")
    sources = bench.sources(executor, progress)
    found = _measure(bench, executor, progress, limits)
    front = pareto_front(found)
    found = [candidate.model_copy(update={"pareto": candidate.name in front}) for candidate in found]
    winner, why = choose(found, limits)
    result = Sweep(
        candidates=found,
        winner=winner,
        why=why,
        sources={name: {"base": c.base or 0.0, **c.sources} for name, c in sources.capabilities.items()},
        executor=executor.name,
        workers=executor.workers,
        path=str(bench.out / "sweep.json"),
    )
    if winner is not None:
        result = _finish(result, bench, executor, progress)
    result = result.model_copy(update={"seconds": round(time.monotonic() - start, 1)})
    bench.kept.write("sweep.json", json.dumps(result.model_dump(mode="json"), ensure_ascii=False, indent=1) + "\n")
    bench.kept.write("sweep.md", sweep_section(result))
    return result


def _measure(bench: Bench, executor: Executor, progress: Progress, limits: Thresholds) -> list[SweepCandidate]:
    """A quick look at all, then the whole measurement of those that may still win."""
    by_name = {candidate.name: candidate for candidate in bench.candidates}
    found: dict[str, SweepCandidate] = {}
    total = len(by_name)
    for done, (name, answer) in enumerate(bench.run(executor, list(by_name.values()), progress, quick=True), 1):
        quick = _judged(by_name[name], answer)
        if quick.stopped is None and (reason := hopeless(Evaluation.model_validate(answer["result"]), limits)):
            quick = quick.model_copy(update={"stopped": reason})
        if quick.stopped is not None:
            bench.forget(by_name[name])
        found[name] = quick
        progress.tell("quick look", done, total, f"{name}: {quick.stopped or 'goes on'}")
    left = [by_name[name] for name, candidate in found.items() if candidate.stopped is None]
    if bench.request.limit is not None and bench.request.quick_limit >= bench.request.limit:
        return [found[candidate.name] for candidate in bench.candidates]
    for done, (name, answer) in enumerate(bench.run(executor, left, progress, quick=False), start=1):
        found[name] = _judged(by_name[name], answer)
        progress.tell("whole dev split", done, len(left), name)
    return [found[candidate.name] for candidate in bench.candidates]


def _gain(capability: Capability) -> float | None:
    """The gain recovered, or the share of the target where the suite sets its own."""
    if capability.target and capability.merged is not None:
        return capability.merged / capability.target
    return capability.gain_recovered


def _interval(capability: Capability) -> Interval | None:
    """Of what `_gain` gives."""
    if capability.target and (span := capability.ci.get("merged")) is not None:
        return Interval(low=span.low / capability.target, high=span.high / capability.target)
    return capability.ci.get("gain_recovered")


def _judged(candidate: Candidate, answer: dict[str, Any]) -> SweepCandidate:
    base = SweepCandidate(
        name=candidate.name, recipe=candidate.recipe, settings=candidate.settings, attempts=answer.get("attempts", 1)
    )
    if "error" in answer:
        return base.model_copy(update={"stopped": f"failed: {answer['error']['message']}"})
    evaluation = Evaluation.model_validate(answer["result"])
    measured = {name: c for name, c in evaluation.capabilities.items() if "perplexity" not in c.metric}
    return base.model_copy(
        update={
            "scores": {name: c.merged for name, c in measured.items()},
            "gains": {name: _gain(c) for name, c in measured.items()},
            "intervals": {name: span for name, c in measured.items() if (span := _interval(c)) is not None},
            "prompts": {name: c.n for name, c in evaluation.capabilities.items()},
            "perplexity_ratio": evaluation.perplexity_ratio,
            "verdict": evaluation.verdict,
            "seconds": evaluation.seconds,
        }
    )


def _finish(result: Sweep, bench: Bench, executor: Executor, progress: Progress) -> Sweep:
    """Write the winner's recipe and model, and measure it on the test split, which the choice did not use."""
    candidate = next(c for c in bench.candidates if c.name == result.winner)
    recipe = bench.kept.write("recipe.yml", candidate.recipe)
    model = bench.out / MERGED
    progress.tell("winner", 0, 1, f"merging {candidate.name} and measuring it on the test split")
    with progress.following([task := bench.final(candidate, model)]):
        ((_, answer),) = list(executor.run([task]))
    if "error" in answer:
        raise from_dict(answer["error"])
    found = {"recipe_path": str(recipe), "model_path": str(model)}
    test = Evaluation.model_validate(answer["result"]) if bench.request.test else None
    progress.tell("winner", 1, 1)
    return result.model_copy(update={**found, "test": test})


class Bench:
    """Makes the tasks of one sweep. Folders are named by content, so a rerun finds what it measured before."""

    def __init__(
        self, request: SweepRequest, candidates: Sequence[Candidate], kept: Kept, names: dict[str, str], roots: list[str] | None
    ) -> None:
        self.request, self.candidates, self.kept, self.out, self.roots = request, candidates, kept, kept.folder, roots
        lineage = lineage_of(read_recipe(candidates[0].recipe, "the first candidate"), names)
        self.base = lineage.base
        self.refs = lineage.sources

    def sources(self, executor: Executor, progress: Progress) -> Evaluation:
        """Base and sources on the development split, once; every later measurement finds their answers remembered."""
        parameters = self._measured(None, quick=False)
        task = Task("sources", str(self.out / "work" / "sources"), [Step(EVALUATE, parameters)], **self._declared())
        with progress.following([task]):
            ((_, answer),) = list(executor.run([task]))
        if "error" in answer:
            raise from_dict(answer["error"])
        return Evaluation.model_validate(answer["result"])

    def run(
        self, executor: Executor, candidates: Sequence[Candidate], progress: Progress, *, quick: bool
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        """(name, answer) of each candidate as it ends. A candidate is merged in memory, and again for the whole measurement; what
        only mergekit can do is merged to disk, and removed at once."""
        tasks = []
        for candidate in candidates:
            folder = self.out / "work" / _folder_name(candidate)
            model = folder / "model"
            if in_memory := _engine(candidate) == STREAM:
                wanted = self._measured(None, quick=quick)
                steps = [Step(TRIAL, {"recipe": candidate.recipe, "seed": self.request.seed, "evaluate": wanted})]
            else:
                steps = [self._merge(candidate, model), Step(EVALUATE, self._measured(model, quick=quick))]
            kind = "quick" if quick else "whole"
            remove = [] if in_memory else [str(model)]
            tasks.append(Task(candidate.name, str(folder / kind), steps, remove=remove, **self._declared()))
        with progress.following(tasks):
            for task, answer in executor.run(tasks):
                yield task.name, answer

    def forget(self, candidate: Candidate) -> None:
        """Remove what a candidate that goes no further may have left, such as a model whose measurement failed."""
        shutil.rmtree(self.out / "work" / _folder_name(candidate) / "model", ignore_errors=True)

    def final(self, candidate: Candidate, model: Path) -> Task:
        steps = [self._merge(candidate, model)]
        if self.request.test:
            steps.append(Step(EVALUATE, self._measured(model, quick=False) | {"split": "test", "cross": True}))
        return Task("winner", str(self.out / "work" / f"winner-{_folder_name(candidate)}"), steps, **self._declared())

    def _merge(self, candidate: Candidate, model: Path) -> Step:
        parameters = {"recipe": candidate.recipe, "seed": self.request.seed, "shard_size": 5_000_000_000, "overwrite": True}
        return Step(_engine(candidate), parameters, output=str(model))

    def _measured(self, model: Path | None, *, quick: bool) -> dict[str, Any]:
        request = self.request
        limit = min(request.quick_limit, request.limit or request.quick_limit) if quick else request.limit
        return {
            "out": str(model) if model else None,
            "suites": request.suites,
            "data": request.data,
            "suite_folders": request.suite_folders,
            "base": self.base,
            "sources": self.refs,
            "limit": limit,
            "split": "dev",
            "dtype": request.dtype,
        }

    def _declared(self) -> dict[str, Any]:
        request = self.request
        return {
            "cpus": request.cpus,
            "gpus": request.gpus,
            "memory_bytes": int(request.memory_gib * GIB),
            "roots": self.roots,
        }


def _engine(candidate: Candidate) -> str:
    from mcp_server.engine.coverage import covers

    return MERGEKIT if covers(candidate.recipe) else STREAM


def _names(plan: Plan, near: Path) -> dict[str, str]:
    """Folder of a source → the scenario's name for it."""
    sources = plan.scenario.sources or []
    return {resolve_ref(source.ref.rpartition("+")[2], near): source.name for source in sources if source.ref and source.name}


def _folder_name(candidate: Candidate) -> str:
    digest = hashlib.sha256(candidate.recipe.encode()).hexdigest()[:8]
    return f"{re.sub(r'[^A-Za-z0-9.=-]+', '_', candidate.name)[:60]}-{digest}"


if __name__ == "__main__":
    sys.exit(run_worker(main))
