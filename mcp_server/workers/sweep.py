"""A bake-off: merge and measure candidates on the development split, choose, and report the winner once on the test split.

Worker inputs   request.json parameters:
    plan            path of a plan, or the plan itself
    out             folder for the table, the winner's recipe and the winner (OUT/merged)
    suites, data    suites and files of prompts to measure by
    grid            KEY=V1,V2 axes (default: the shortlist)
    tries           single candidates beside the grid: KEY=VALUE KEY=VALUE
    minutes         search for so long; grid, tries or shortlist are only its beginning
    limit           prompts per suite for the full measurement; `quick_limit` for the first look (default 20); at or above `limit`
                    the first look is the whole measurement
    workers, ray    tasks at once on this machine, or the address of a Ray cluster
    cpus, memory_gib, gpus    what one task declares to the cluster
    seed            of every merge, and of the search (default 0)
Worker outputs  result.json: `Sweep`; OUT/plan.yaml, OUT/sweep.json, OUT/sweep.md, OUT/recipe.yml, OUT/merged with its evaluation
Not covered     tuning inside a candidate; candidates are independent and a rerun continues after the last finished one.
"""

from __future__ import annotations

import json
import sys
import time
from contextlib import closing
from pathlib import Path

import yaml

from mcp_server.errors import from_dict
from mcp_server.schemas.evidence import Evaluation, Sweep, SweepCandidate
from mcp_server.schemas.job import SweepRequest
from mcp_server.steps.evaluate import Thresholds, load_thresholds
from mcp_server.steps.report import sweep_section
from mcp_server.steps.sweep import Candidate, choose, from_grid, hopeless, pareto_front
from mcp_server.steps.sweep.cost import cost_of, on_disk, within
from mcp_server.steps.sweep.place import MERGED, lineage_of_plan, opened_plan, require_sweep_place
from mcp_server.system.outputs import Kept
from mcp_server.workers.protocol import Job, run_worker
from mcp_server.workers.sweeping.bench import TRIAL, Bench, judged
from mcp_server.workers.sweeping.progress import Progress
from mcp_server.workers.tasks.executors import Executor, executor_for


def main(job: Job) -> Sweep:
    request = job.request(SweepRequest)
    with closing(executor_for(request.ray, request.workers, TRIAL)) as executor:
        return sweep(request, job, executor)


def sweep(request: SweepRequest, job: Job, executor: Executor) -> Sweep:
    start = time.monotonic()
    limits = load_thresholds()
    plan, near = opened_plan(request)
    candidates = from_grid(plan, request.grid, near, request.tries)
    lineage = lineage_of_plan(plan, near, candidates[0].recipe)
    if request.limit is None:
        request = within(request, lineage)  # who starts a job has chosen it before
    out = Path(request.out)
    require_sweep_place(out)
    out.mkdir(parents=True, exist_ok=True)
    bench = Bench(request, lineage, Kept(out), job.roots)
    saved = yaml.safe_dump(plan.model_dump(mode="json", exclude_none=True), sort_keys=False, allow_unicode=True)
    bench.kept.write("plan.yaml", saved)
    progress = Progress(job)
    notes = [said] if (said := on_disk(request, lineage)) else []
    progress.tell("base and sources", 0, len(candidates), "; ".join([f"{len(candidates)} candidates", *notes]))
    cost = cost_of(request, lineage, request.limit) if request.minutes is not None else None  # before answers are known
    sources = bench.sources(executor, progress)
    told = ""
    if request.minutes is None:
        found = _measure(bench, candidates, executor, progress, limits)
    else:
        from mcp_server.workers.sweeping.budget import Budget

        budget = Budget(bench, plan, near, candidates, cost, executor, progress, start, time.monotonic() - start)
        found, told = budget.spend(limits)
        candidates = budget.tried
    front = pareto_front(found)
    found = [candidate.model_copy(update={"pareto": candidate.name in front}) for candidate in found]
    winner, why = choose(found, limits)
    result = Sweep(
        candidates=found,
        winner=winner,
        why=f"{why}; {told}" if told else why,
        sources={name: {"base": c.base or 0.0, **c.sources} for name, c in sources.capabilities.items()},
        executor=executor.name,
        workers=executor.workers,
        minutes=request.minutes,
        limit=request.limit,
        notes=notes,
        path=str(bench.out / "sweep.json"),
    )
    if winner is not None:
        result = _finish(result, next(c for c in candidates if c.name == winner), bench, executor, progress)
    result = result.model_copy(update={"seconds": round(time.monotonic() - start, 1)})
    bench.kept.write("sweep.json", json.dumps(result.model_dump(mode="json"), ensure_ascii=False, indent=1) + "\n")
    bench.kept.write("sweep.md", sweep_section(result))
    return result


def _measure(
    bench: Bench, candidates: list[Candidate], executor: Executor, progress: Progress, limits: Thresholds
) -> list[SweepCandidate]:
    """A quick look at all, then the whole measurement of those that may still win."""
    by_name = {candidate.name: candidate for candidate in candidates}
    found: dict[str, SweepCandidate] = {}
    *quick_look, whole = bench.looks()
    left = candidates
    for look in quick_look:
        for done, (name, answer) in enumerate(bench.run(executor, candidates, progress, look), 1):
            quick = judged(by_name[name], answer)
            if quick.stopped is None and (reason := hopeless(Evaluation.model_validate(answer["result"]), limits)):
                quick = quick.model_copy(update={"stopped": reason})
            if quick.stopped is not None:
                bench.forget(by_name[name])
            found[name] = quick
            progress.tell("quick look", done, len(by_name), f"{name}: {quick.stopped or 'goes on'}")
        left = [by_name[name] for name, candidate in found.items() if candidate.stopped is None]
    for done, (name, answer) in enumerate(bench.run(executor, left, progress, whole), start=1):
        found[name] = judged(by_name[name], answer)
        progress.tell("whole dev split", done, len(left), name)
    return [found[candidate.name] for candidate in candidates]


def _finish(result: Sweep, candidate: Candidate, bench: Bench, executor: Executor, progress: Progress) -> Sweep:
    """Write the winner's recipe and model, and measure it on the test split, which the choice did not use."""
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


if __name__ == "__main__":
    sys.exit(run_worker(main))
