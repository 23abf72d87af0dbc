"""Merge one recipe into a model that is loaded, and measure it: a candidate of a sweep, of which nothing is written.

Worker inputs   request.json parameters: recipe, seed, and `evaluate`: an `EvaluateRequest` without `out`
Worker outputs  result.json: `Evaluation`
Alone           `python -m mcp_server.workers.trial FOLDER`, as every worker
Resident        without FOLDER it reads folders from standard input, one a line, and answers with the exit status of each;
                imports, the loaded model, and what base and sources answered serve all of them
Not covered     recipes whose output is another model than its donor with other values (a tokenizer of its own, layers taken
                apart): these are merged into the job's folder, measured there and removed, in the same process.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # the engine's threads share blocks; a product must not depend on their number

from mcp_server.engine.in_memory import InMemory
from mcp_server.formats.content import content_hash
from mcp_server.formats.lineage import Lineage
from mcp_server.formats.suites import content_hash as suite_hash
from mcp_server.schemas.evidence import Evaluation
from mcp_server.schemas.job import EvaluateRequest
from mcp_server.steps.evaluate import SuiteSamples
from mcp_server.steps.evaluate.held import BITS
from mcp_server.steps.evaluate.known import answers_file
from mcp_server.workers.chat_templates import named_template
from mcp_server.workers.evaluate import Measuring, measure
from mcp_server.workers.protocol import Job, run_one, run_worker, tie_to_runner

_models: dict[str, Any] = {}
"""What stays between the trials of one process: the opened base and sources, and the model that takes candidates."""
_samples: dict[tuple[str, ...], SuiteSamples] = {}


def main(job: Job) -> Evaluation:
    request = EvaluateRequest.of(job.parameters["evaluate"])
    candidate = InMemory(job.parameters["recipe"], int(job.parameters["seed"]))
    if candidate.differs_from_donor() is None:
        try:
            return _in_memory(candidate, request, job)
        except _OtherNames:
            pass  # this model's weights have other names in memory than in its file
    return _on_disk(job, request)


class _OtherNames(Exception):
    """The loaded model does not hold exactly the tensors that the merge makes."""


def _in_memory(candidate: InMemory, request: EvaluateRequest, job: Job) -> Evaluation:
    measuring = Measuring(request, job, Lineage())
    from mcp_server.workers.evaluating import local, responses
    from mcp_server.workers.evaluating import models as loading

    donor = candidate.plan.sources[candidate.plan.recipe.donor].checkpoint.folder
    known = repr((sorted(measuring.refs.items()), str(donor), request.dtype, request.batch_size, request.threads))
    if known not in _models:
        _models.clear()
        _samples.clear()
        _models[known] = local.local_models(measuring.refs, request.dtype, request.batch_size, request.threads)
        _models["donor"] = None
    opened: Mapping[str, local.Opened] = _models[known]
    held = next(iter(opened.values())).held
    if held in BITS:
        raise _OtherNames  # codes take no candidate's values
    name = _content(candidate)
    numerics = next(iter(opened.values())).numerics

    def load() -> Any:
        if _models["donor"] is None:
            tokenizer = loading.load_tokenizer(donor)
            _models["donor"] = local.load(loading.ModelRef(donor), held, request.threads, tokenizer, request.batch_size)
        if _models.get("filled") != name:
            _models["filled"] = None
            _fill(_models["donor"].model, candidate, job)
            _models["filled"] = name
        return _models["donor"]

    store = responses.ResponseStore(answers_file(name, numerics.partition(",")[0]))
    merged = responses.RememberingLM(store, load, loading.load_tokenizer(donor), f"merge of {donor}", request.batch_size)
    sources = _keys(measuring, opened)
    found = measuring.run({**opened, "merged": local.Opened(merged, numerics, name)}, _samples, sources)
    for one in opened.values():
        one.release()
    return found


def _keys(measuring: Measuring, opened: Mapping[str, Any]) -> dict[tuple[str, str], tuple[str, ...]]:
    """(suite, label) → everything that decides what that model answered there."""
    return {
        (suite.name, label): (
            str(one.content), one.numerics, suite_hash(suite), str(measuring.limits[suite.name]), str(measuring.request.split),
        )
        for suite in measuring.suites
        for label, one in opened.items()
    }  # fmt: skip


def _content(candidate: InMemory) -> str:
    """What decides the merge's answers: the plan with its seed, and the content of every source."""
    digest = hashlib.sha256(candidate.fingerprint.encode())
    for source in candidate.plan.sources.values():
        adapter = source.adapter.folder if source.adapter else None
        digest.update(content_hash(source.checkpoint.folder, adapter, remembered=True).encode())
    return digest.hexdigest()


def _fill(model: Any, candidate: InMemory, job: Job) -> None:
    """Give a loaded model the values of the merge. Raises `_OtherNames` before anything is changed."""
    import torch

    targets = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    planned = {tensor.name: tensor.shape for tensor in candidate.plan.tensors}
    needed = {name for name, _ in model.named_parameters()}  # of weights that are tied, the one that is stored
    if not needed <= set(planned) <= set(targets) or any(tuple(targets[n].shape) != tuple(s) for n, s in planned.items()):
        raise _OtherNames

    def take(tensor: Any, raw: Any) -> None:
        with torch.no_grad():
            targets[tensor.name].copy_(torch.from_numpy(raw).view(getattr(torch, tensor.dtype)).reshape(tensor.shape))

    candidate.run(take, partial(_report, job))


def _report(job: Job, stage: str, done: float, total: float, unit: str) -> None:
    job.progress(stage, done, total, unit=unit)


def _on_disk(job: Job, request: EvaluateRequest) -> Evaluation:
    from mcp_server.engine.merge import merge
    from mcp_server.engine.request import Request

    model = job.folder / "model"
    shutil.rmtree(model, ignore_errors=True)
    model.mkdir()
    recipe, seed, journal = job.parameters["recipe"], int(job.parameters["seed"]), job.folder / "journal.jsonl"
    try:
        merge(Request(recipe, model, journal, seed=seed, chat_template=named_template(recipe)), partial(_report, job))
        return measure(request.model_copy(update={"out": str(model)}), job)
    finally:
        shutil.rmtree(model, ignore_errors=True)
        (job.folder / "journal.jsonl").unlink(missing_ok=True)


def reside() -> int:
    """Run trial after trial; what a trial prints goes to its own log. Ends with the standard input."""
    tie_to_runner()
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    for line in sys.stdin:
        folder = Path(line.rstrip("\n"))
        log = os.open(folder / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.close(log)
        answers.write(f"{run_one(folder, main)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(run_worker(main) if len(sys.argv) > 1 else reside())
