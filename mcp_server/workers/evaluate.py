"""Measure base, sources and merge on the same prompts with lm-eval, and judge the merge.

Worker inputs   request.json parameters:
    out             the merged folder; null measures sources only (the cross-context check before a merge)
    suites          names, folders, text files or lm-eval tasks; default: perplexity, suites that are about a source by its name,
                    and for `cross` one that is about none
    base, sources   refs; default: what the merged folder's own record says
    against         name → ref: replaces `base` or a source, or measures one more model
    cross           also count each source's own behaviour on every other source's prompts
    limit           prompts per suite; `quick: true` takes each suite's own small number
    gguf            exports of the merge, measured beside it in llama.cpp
    data            files of prompts and expected answers (.jsonl), measured beside the suites
    split           dev (default) or test; without it files of your own are measured whole
    backend         hf (default) or openai, with endpoint, served {label: model name} and tokenizer (folder)
    batch_size, dtype, threads, suite_folders, offline
Worker outputs  result.json: `Evaluation`; evaluation.json, replies.json and a line of evaluations.jsonl beside the merge;
                evaluation_samples.json in the job folder
Not covered     multimodal suites, sampling (answers are greedy), suites that execute generated code.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mcp_server.errors import MergingError
from mcp_server.formats.lineage import Lineage
from mcp_server.formats.suites import DEFAULT_SPLIT, Suite
from mcp_server.schemas.evidence import Evaluation, Generation
from mcp_server.schemas.job import EvaluateRequest
from mcp_server.steps.diagnose.skills import FAR_ABOVE
from mcp_server.steps.estimate.minutes import note_rate, note_start, parameters_of, prompts_of, rate_of
from mcp_server.steps.evaluate import SuiteSamples, load_thresholds
from mcp_server.steps.evaluate.assemble import Measured, assemble
from mcp_server.steps.evaluate.causes import base_note, with_causes
from mcp_server.steps.evaluate.exports import is_gguf, require_runnable
from mcp_server.steps.evaluate.history import keep
from mcp_server.steps.evaluate.known import note_answered
from mcp_server.steps.evaluate.line_up import limit_of, lineage_of_request, refs_of, require_models, suites_of
from mcp_server.steps.evaluate.listing import needs_likelihoods
from mcp_server.steps.evaluate.replies import keep_replies, side_by_side
from mcp_server.workers.evaluating.remaining import Remaining
from mcp_server.workers.evaluating.request import quiet
from mcp_server.workers.protocol import Job, run_worker, write_json


def main(job: Job) -> Evaluation:
    return measure(job.request(EvaluateRequest), job, started_now=True)


def measure(request: EvaluateRequest, job: Job, *, started_now: bool = False) -> Evaluation:
    """Measure every model on every suite, then score. A model is loaded at most once, and not at all if its answers are known.

    `started_now`: this process did nothing before, so what its start takes tells the next estimate.
    """
    lineage = lineage_of_request(request)
    measuring = Measuring(request, job, lineage)
    evaluation = measuring.run(measuring.models())
    if started_now and not request.endpoint:
        with contextlib.suppress(OSError):
            note_start(time.monotonic() - measuring.start - measuring.at_work)
    if request.out and Path(request.out).is_dir() and not is_gguf(measuring.refs["merged"]):
        out = Path(request.out)
        keep(out, evaluation, run=False)
        evaluation = keep(out, with_causes(evaluation, out))
        keep_replies(out, side_by_side(measuring.samples, evaluation))
    elif told := base_note(evaluation, FAR_ABOVE):
        evaluation = evaluation.model_copy(update={"notes": [told, *evaluation.notes]})
    return evaluation


class Measuring:
    """One measurement: which models and suites, and what was answered. Raises our errors for what cannot be measured, at once."""

    def __init__(self, request: EvaluateRequest, job: Job, lineage: Lineage) -> None:
        self.request, self.job, self.lineage = request, job, lineage
        self.start = time.monotonic()
        self.at_work = 0.0
        """Seconds of loading models and of their answers."""
        self.rules = load_thresholds()
        self.refs, self.exports = refs_of(request, lineage)
        if not request.endpoint:
            require_models(self.refs)
        self.suites = suites_of(request, self.refs)
        require_runnable(self.refs, self.exports, self.suites)
        self.limits = {suite.name: limit_of(request, suite) for suite in self.suites}
        self.prompts = {s.name: prompts_of(s, request.split, self.limits[s.name]) for s in self.suites}
        self.samples: dict[str, dict[str, SuiteSamples]] = {suite.name: {} for suite in self.suites}
        job.progress("starting", 0, 1, message="loading lm-eval and the tasks")
        quiet(request.offline)
        from mcp_server.workers.evaluating import harness

        self.harness = harness.Harness(self.suites, request.split, self.limits)

    def models(self) -> dict[str, Any]:
        """Every model by label, opened and not loaded."""
        request = self.request
        if request.backend == "openai" or request.endpoint:
            from mcp_server.workers.evaluating.endpoint import served_models

            return served_models(request, self.refs, self.job.folder)
        from mcp_server.workers.evaluating.local import local_models

        return local_models(self.refs, request.dtype, request.batch_size, request.threads)

    def run(
        self, models: Mapping[str, Any], known: dict[Any, SuiteSamples] | None = None, keys: Mapping[Any, Any] | None = None
    ) -> Evaluation:
        """`known` keeps samples for the next run, under `keys[suite, label]`; a pair without a key is measured every time."""
        known, keys = known if known is not None else {}, keys or {}
        speeds: dict[str, Generation] = {}
        notes = self._notes(models)
        remaining = Remaining(self._weights(), models)
        for number, (label, opened) in enumerate(models.items()):
            model_start = time.monotonic()
            model = opened.model
            for suite in self.suites:
                if label in self.exports and needs_likelihoods(suite):
                    remaining.end(label, suite.name, computed=False)
                    continue
                by = self.samples[suite.name]
                model.told = self._teller(label, suite, f"model {number + 1} of {len(models)}", remaining)
                model.drafts = [models[name].model.store for name in _best_first(by, label)]
                key = keys.get((suite.name, label))
                before, asked, loaded = model.computed, model.asked, model.load_seconds
                remaining.begin()
                suite_start = time.monotonic()
                by[label] = known[key] if key in known else self._answered(suite, label, opened)
                taken = time.monotonic() - suite_start - (model.load_seconds - loaded)
                self.at_work += time.monotonic() - suite_start
                remaining.end(label, suite.name, model.computed > before)
                self._note(suite, label, opened, taken, (model.computed - before) / max(model.asked - asked, 1))
                if key is not None:
                    known[key] = by[label]
            speeds[label] = Generation(
                asked=model.asked,
                computed=model.computed,
                tokens_per_second=model.generated_tokens / model.generation_seconds if model.generated_tokens else None,
                seconds=round(time.monotonic() - model_start, 2),
            )
            opened.release()
            if model.unscored and (note := f"metrics that compare likelihoods were left out: {model.unscored}") not in notes:
                notes.append(note)
        self.job.progress("scoring", len(models), len(models), unit="models")
        write_json(
            self.job.folder / "evaluation_samples.json",
            {suite: {label: one.model_dump(mode="json") for label, one in by.items()} for suite, by in self.samples.items()},
        )
        return self._scored(models, speeds, notes)

    def _notes(self, models: Mapping[str, Any]) -> list[str]:
        """What a reader of the figures has to know of how they were measured. A candidate made in memory is in no file."""
        notes = [f"{s.title} was measured whole" for s in self.suites if (s.data or s.text) and self.request.split is None]
        notes += sorted({loading_note(opened.numerics) for opened in models.values()} - {""})
        ggufs = [label for label in models if is_gguf(self.refs.get(label, ""))]
        notes += [f"{label} ran in {models[label].numerics}, with its own chat template" for label in ggufs]
        left = [suite.title or suite.name for suite in self.suites if needs_likelihoods(suite)] if self.exports else []
        if left:
            notes.append(f"{', '.join(left)}: without {', '.join(self.exports)}, of which llama.cpp tells no likelihoods")
        return notes

    def _answered(self, suite: Suite, label: str, opened: Any) -> SuiteSamples:
        """Its answers, and a note for the next estimate that they are remembered."""
        found: SuiteSamples = self.harness.run(suite, opened.model)
        if opened.content is not None and label in self.refs and (prompts := self.prompts[suite.name]):
            with contextlib.suppress(OSError):
                note_answered(opened.model.store.file, suite, self.request.split, prompts)
        return found

    def _weights(self) -> dict[str, float]:
        """What each suite's prompts are expected to take, in no unit; one that cannot be counted weighs as much as the others."""
        asked = self.prompts
        rates = {suite.name: rate_of(suite, self.request.dtype).seconds for suite in self.suites}
        known = [count * rates[name] for name, count in asked.items() if count]
        usual = sum(known) / len(known) if known else 1.0
        return {name: count * rates[name] if count else usual for name, count in asked.items()}

    def _note(self, suite: Suite, label: str, opened: Any, seconds: float, share: float) -> None:
        """Remember the speed of a model that answered in this process, for the next estimate. `share`: of the suite's answers, of
        which a prompt may need several, what was computed."""
        prompts = share * (self.prompts[suite.name] or 0)
        if opened.content is not None and label in self.refs and not is_gguf(self.refs[label]):
            with contextlib.suppress(MergingError, OSError):
                note_rate(suite, self.request.dtype, seconds, prompts, parameters_of(self.refs[label]))

    def _teller(self, label: str, suite: Suite, which: str, remaining: Remaining) -> Callable[[int, int, str], None]:
        stage = f"{label}: {suite.title or suite.name}"

        def tell(done: int, total: int, kind: str) -> None:
            left = remaining.seconds(label, suite.name, done, total)
            self.job.progress(stage, done, total, unit="prompts", message=f"{which}, {kind}", left_seconds=left)

        return tell

    def _scored(self, models: Mapping[str, Any], speeds: dict[str, Generation], notes: list[str]) -> Evaluation:
        from mcp_server.workers.evaluating.harness import behaviour

        request = self.request
        measured = Measured(
            suites={suite.name: suite for suite in self.suites},
            samples=self.samples,
            sources=[name for name in _sources(request, self.lineage, self.refs) if name not in self.exports],
            exports=self.exports,
            behaviours={suite.name: found for suite in self.suites if (found := behaviour(suite))},
            cross=request.cross,
            tried=self.lineage.tried,
        )
        return assemble(measured, self.rules).model_copy(
            update={
                "models": {label: str(ref) for label, ref in self.refs.items()},
                "created": datetime.now(UTC).isoformat(timespec="seconds"),
                "model": models["merged"].content if "merged" in models else None,
                "exports": {label: models[label].content for label in self.exports},
                "limit": request.limit,
                "limits": self.limits,
                "split": request.split or DEFAULT_SPLIT,
                "seconds": round(time.monotonic() - self.start, 2),
                "generation": speeds,
                "notes": notes,
                "peak_rss_bytes": _peak_rss_bytes(),
                "numerics": next(iter(models.values())).numerics if models else "",
            }
        )


def _best_first(measured: dict[str, SuiteSamples], label: str) -> list[str]:
    """Whose replies a merge most likely repeats: the best source's. A source repeats no other one's."""
    figures = {name: one.primary.figure() for name, one in measured.items() if name not in ("base", "merged")}
    known = {name: value for name, value in figures.items() if value is not None}
    sign = 1.0 if all(one.higher_is_better for one in measured.values()) else -1.0
    return sorted(known, key=lambda name: -sign * known[name])[:1] if label == "merged" else []


def _sources(request: EvaluateRequest, lineage: Lineage, refs: dict[str, str]) -> list[str]:
    """The labels that count as sources. Where nothing says which they are, every named model but base and merge does."""
    named = set(request.sources if request.sources is not None else lineage.sources)
    return [name for name in refs if name not in ("base", "merged") and (not named or name in named)]


def loading_note(numerics: str) -> str:
    """What weights of 8 or 4 bits can show; nothing for others."""
    bits = {"int8": 8, "int4": 4}.get(numerics.partition("-")[0])
    if bits is None:
        return ""
    return (
        f"the weights were held in {bits} bits, base, sources and merge alike: they can be compared with each other, not with "
        "figures of 16 bits, and small differences may come of the rounding"
    )


def _peak_rss_bytes() -> int:
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


if __name__ == "__main__":
    sys.exit(run_worker(main))
