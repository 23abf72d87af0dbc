"""The tasks of one sweep, and what their answers say of a candidate."""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from mcp_server.errors import from_dict
from mcp_server.formats.lineage import Lineage
from mcp_server.schemas.evidence import Capability, Evaluation, Interval, SweepCandidate
from mcp_server.schemas.job import SweepRequest
from mcp_server.steps.sweep import Candidate
from mcp_server.steps.sweep.choose import FAILED
from mcp_server.steps.sweep.cost import FIRST_LOOK
from mcp_server.system.machine import GIB
from mcp_server.system.outputs import Kept
from mcp_server.workers.sweeping.progress import Progress
from mcp_server.workers.tasks.executors import Executor
from mcp_server.workers.tasks.task import Step, Task

EVALUATE: Final = "mcp_server.workers.evaluate"
STREAM: Final = "mcp_server.workers.stream"
MERGEKIT: Final = "mcp_server.workers.mergekit"
TRIAL: Final = "mcp_server.workers.trial"
"""The worker that merges a candidate in memory and measures it."""


@dataclass(frozen=True, slots=True)
class Look:
    """One measurement of a candidate: its name in the sweep's folder, and the most prompts a suite (null: all)."""

    name: str
    limit: int | None


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


def judged(candidate: Candidate, answer: dict[str, Any]) -> SweepCandidate:
    base = SweepCandidate(
        name=candidate.name, recipe=candidate.recipe, settings=candidate.settings, attempts=answer.get("attempts", 1)
    )
    if "error" in answer:
        return base.model_copy(update={"stopped": f"{FAILED}{answer['error']['message']}"})
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


class Bench:
    """Makes the tasks of one sweep. Folders are named by content, so a rerun finds what it measured before."""

    def __init__(self, request: SweepRequest, lineage: Lineage, kept: Kept, roots: list[str] | None) -> None:
        self.request, self.kept, self.out, self.roots = request, kept, kept.folder, roots
        self.base = lineage.base
        self.refs = lineage.sources

    def sources(self, executor: Executor, progress: Progress) -> Evaluation:
        """Base and sources on the development split, once; every later measurement finds their answers remembered."""
        parameters = self._measured(None, self.request.limit)
        task = Task("sources", str(self.out / "work" / "sources"), [Step(EVALUATE, parameters)], **self._declared())
        with progress.following([task]):
            ((_, answer),) = list(executor.run([task]))
        if "error" in answer:
            raise from_dict(answer["error"])
        return Evaluation.model_validate(answer["result"])

    def run(
        self, executor: Executor, candidates: Sequence[Candidate], progress: Progress, look: Look
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        """(name, answer) of each candidate as it ends. A candidate is merged in memory, and again for another look unless it is
        still there; what only mergekit can do is merged to disk, and removed at once."""
        tasks = []
        for candidate in candidates:
            folder = self.out / "work" / _folder_name(candidate)
            model = folder / "model"
            if in_memory := _engine(candidate) == STREAM:
                wanted = self._measured(None, look.limit)
                steps = [Step(TRIAL, {"recipe": candidate.recipe, "seed": self.request.seed, "evaluate": wanted})]
            else:
                steps = [self._merge(candidate, model), Step(EVALUATE, self._measured(model, look.limit))]
            remove = [] if in_memory else [str(model)]
            tasks.append(Task(candidate.name, str(folder / look.name), steps, remove=remove, **self._declared()))
        with progress.following(tasks):
            for task, answer in executor.run(tasks):
                yield task.name, answer

    def forget(self, candidate: Candidate) -> None:
        """Remove what a candidate that goes no further may have left, such as a model whose measurement failed."""
        shutil.rmtree(self.out / "work" / _folder_name(candidate) / "model", ignore_errors=True)

    def final(self, candidate: Candidate, model: Path) -> Task:
        steps = [self._merge(candidate, model)]
        if self.request.test:
            steps.append(Step(EVALUATE, self._measured(model, self.request.limit) | {"split": "test", "cross": True}))
        return Task("winner", str(self.out / "work" / f"winner-{_folder_name(candidate)}"), steps, **self._declared())

    def _merge(self, candidate: Candidate, model: Path) -> Step:
        parameters = {"recipe": candidate.recipe, "seed": self.request.seed, "shard_size": 5_000_000_000, "overwrite": True}
        return Step(_engine(candidate), parameters, output=str(model))

    def looks(self) -> list[Look]:
        """How often a candidate is measured, each time on more prompts; the last is the whole measurement."""
        request = self.request
        whole = Look("whole", request.limit)
        few = [("first", FIRST_LOOK)] if request.minutes is not None else []
        few += [("quick", request.quick_limit)]
        return [Look(name, prompts) for name, prompts in few if request.limit is None or prompts < request.limit] + [whole]

    def _measured(self, model: Path | None, limit: int | None) -> dict[str, Any]:
        request = self.request
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


def _folder_name(candidate: Candidate) -> str:
    digest = hashlib.sha256(candidate.recipe.encode()).hexdigest()[:8]
    return f"{re.sub(r'[^A-Za-z0-9.=-]+', '_', candidate.name)[:60]}-{digest}"
