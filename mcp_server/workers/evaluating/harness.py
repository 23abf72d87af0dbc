"""Run suites on one model with lm-eval, and take home the score of every prompt rather than the averages.

Perplexity is per token of the model's own tokenizer, over windows of `WINDOW_TOKENS`; lm-eval's word, byte and bit figures
stand beside it. A metric whose aggregation is not a mean keeps lm-eval's aggregate and gets no interval.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from lm_eval.api.metrics import mean
from lm_eval.evaluator import evaluate
from lm_eval.tasks import TaskManager

from mcp_server.errors import Malformed, NotFound, did_you_mean
from mcp_server.formats.own_data import Split, read_data
from mcp_server.formats.suites import DEFAULT_SPLIT, Suite
from mcp_server.steps.evaluate.matching import detector
from mcp_server.steps.evaluate.samples import Metric, SuiteSamples
from mcp_server.workers.evaluating.own_data import examples_of, run_examples
from mcp_server.workers.evaluating.responses import RememberingLM

PREFERRED = ("exact_match", "acc_norm", "acc", "f1", "perplexity", "word_perplexity")
WINDOW_TOKENS = 1024
"""Perplexity windows: long enough that edges do not matter between models, short enough for 4 GB of memory."""


class Harness:
    """lm-eval's tasks for a set of suites, loaded once and run on several models."""

    def __init__(self, suites: Iterable[Suite], split: Split | None, limits: Mapping[str, int | None]) -> None:
        self.suites = list(suites)
        self.split: Split = split or DEFAULT_SPLIT
        self.whole_split = split
        self.limits = limits
        tasks = [suite for suite in self.suites if suite.data is None]
        folders = sorted({str(suite.folder) for suite in tasks if suite.folder})
        foreign = any(suite.folder is None for suite in tasks)
        self.manager = TaskManager(include_path=folders or None, include_defaults=foreign)
        for suite in tasks:
            for task in suite.task_names(self.split):
                self._check_known(suite, task)

    def run(self, suite: Suite, model: RememberingLM) -> SuiteSamples:
        """Every prompt of one suite on one model."""
        if suite.data is not None:
            return run_examples(suite, examples_of(suite, self.whole_split, self.limits.get(suite.name)), model)
        model.unscored_ok = suite.likelihoods == "optional"
        loaded = self.manager.load(suite.task_names(self.split))
        for task in loaded["tasks"].values():
            if suite.text is not None:
                task.dataset = task.config.custom_dataset(split=self.whole_split or "whole", file=suite.text)
            if task.get_config("num_fewshot") is None:
                task.set_config(key="num_fewshot", value=0)
            task.set_fewshot_seed(seed=1234)
        results = evaluate(
            lm=model,
            task_dict=loaded,
            limit=self.limits.get(suite.name),
            bootstrap_iters=0,
            log_samples=True,
            apply_chat_template=suite.chat_template,
        )
        return _collect(suite, loaded["tasks"], results, model)

    def _check_known(self, suite: Suite, task: str) -> None:
        if task in self.manager.all_tasks:
            return
        known = self.manager.all_tasks
        where = f"the folder {suite.folder}" if suite.folder else "lm-eval"
        raise NotFound(
            f"{task!r} is neither a suite nor a task of {where}.{did_you_mean(task, known)}",
            "list the suites with `model-merging evaluate --help`, or give the folder of your own",
        )


def _collect(suite: Suite, tasks: Mapping[str, Any], results: Any, model: Any) -> SuiteSamples:
    values: dict[str, list[float]] = {}
    weights: dict[str, list[float]] = {}
    points: dict[str, float] = {}
    prompts: list[str] = []
    replies: list[str] = []
    asked: list[str] = []
    expected: list[str] = []
    tables: dict[str, list[Any]] = {}
    direction: dict[str, bool] = {}
    for name, task in tasks.items():
        averaged = {metric for metric, aggregate in task.aggregation().items() if aggregate is mean}
        direction |= {metric: bool(better) for metric, better in task.higher_is_better().items()}
        rolling = task.OUTPUT_TYPE == "loglikelihood_rolling"
        samples = sorted(results["samples"][name], key=lambda sample: sample["doc_id"])
        first_filter = samples[0]["filter"] if samples else None
        for sample in samples:
            if sample["filter"] != first_filter:
                continue
            prompts.append(_prompt_id(sample))
            if rolling:
                text = sample["arguments"][0][0]
                values.setdefault("perplexity", []).append(float(_first(sample["filtered_resps"])))
                weights.setdefault("perplexity", []).append(float(max(len(model.tokenizer.encode(text)), 1)))
            if task.OUTPUT_TYPE == "generate_until":
                replies.append(str(_first(sample["filtered_resps"])))
                asked.append(str(task.doc_to_text(sample["doc"])))
                expected.append(str(_first(sample["target"])) if sample["target"] else "")
            for metric in sample["metrics"]:
                value = sample[metric]
                if metric in averaged and (isinstance(value, bool | int | float) or hasattr(value, "item")):
                    values.setdefault(metric, []).append(float(value))
                elif isinstance(value, str | dict):
                    tables.setdefault(metric, []).append(value)
        for key, value in results["results"][name].items():
            metric = key.split(",")[0]
            if metric not in values and metric not in tables and isinstance(value, float):
                points[metric] = value
    metrics = {
        name: Metric(kind="perplexity" if name in weights else "mean", values=found, weights=weights.get(name))
        for name, found in values.items()
        if len(found) == len(prompts)
    } | {name: Metric(kind="point", value=value) for name, value in points.items()}
    primary = _primary(suite, metrics)
    return SuiteSamples(
        suite=suite.name,
        metric=primary,
        higher_is_better=_direction(suite, primary, direction),
        metrics=metrics,
        prompt_ids=prompts,
        replies=replies,
        prompts=asked,
        expected=expected,
        tables=tables,
    )


def _primary(suite: Suite, metrics: Mapping[str, Metric]) -> str:
    if suite.metric:
        if suite.metric not in metrics:
            raise Malformed(
                f"the suite {suite.name} decides by {suite.metric!r}, its tasks give {', '.join(sorted(metrics)) or 'nothing'}",
                "correct `metric` in its suite.yaml",
            )
        return suite.metric
    for name in PREFERRED:
        if name in metrics:
            return name
    if not metrics:
        raise Malformed(f"the suite {suite.name} produced no metric", "check its task YAML")
    return next(iter(metrics))


def _direction(suite: Suite, primary: str, known: Mapping[str, bool]) -> bool:
    if suite.higher_is_better is not None:
        return suite.higher_is_better
    return known.get(primary, "perplexity" not in primary)


def _first(value: Any) -> Any:
    while isinstance(value, list | tuple):
        value = value[0]
    return value


def _prompt_id(sample: Mapping[str, Any]) -> str:
    """By the document: models whose chat templates differ are asked the same question in their own form."""
    return hashlib.sha256(str(sample["doc_hash"]).encode()).hexdigest()[:16]


def behaviour(suite: Suite) -> Callable[[str], bool] | None:
    """The detector that a suite's `behaviour: FILE.py:FUNCTION` names; null when it names none."""
    if suite.data is not None:
        return detector(read_data(Path(suite.data)))
    if suite.behaviour is None or suite.folder is None:
        return None
    file_name, _, function = suite.behaviour.partition(":")
    file = Path(suite.folder) / file_name
    if not file.is_file():
        raise Malformed(f"{suite.name}: behaviour names {file_name}, which is not in {suite.folder}", "correct its suite.yaml")
    spec = importlib.util.spec_from_file_location(f"suite_{suite.name}_{file.stem}", file)
    if spec is None or spec.loader is None:
        raise Malformed(f"{file} cannot be loaded as Python", "correct its suite.yaml")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found = getattr(module, function, None)
    if not callable(found):
        raise Malformed(f"{file} has no function {function!r}", "correct `behaviour` in its suite.yaml")
    return lambda text: bool(found(text))
