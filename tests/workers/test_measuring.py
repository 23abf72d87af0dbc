"""The loop of an evaluation over models and suites, with models that are made up: no torch, no lm-eval."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mcp_server.formats.suites import Suite, find_suite
from mcp_server.schemas.job import EvaluateRequest
from mcp_server.steps.estimate import minutes
from mcp_server.steps.evaluate import SuiteSamples
from mcp_server.steps.evaluate.known import known_prompts
from mcp_server.steps.evaluate.samples import Metric
from mcp_server.workers.evaluate import Measuring
from mcp_server.workers.protocol import Job
from tests import tiny

PROMPTS = 6
ANSWERS = 4
"""Each prompt takes, as a question with four choices does."""


class MadeUp:
    """Stands for lm-eval: every prompt takes two seconds of the clock, unless the model answered it before."""

    def __init__(self, clock: list[float]) -> None:
        self.clock = clock

    def run(self, suite: Suite, model: Any) -> SuiteSamples:
        model.asked += PROMPTS * ANSWERS
        if not model.remembers:
            model.computed += PROMPTS * ANSWERS
            self.clock[0] += 2.0 * PROMPTS
        values = Metric(kind="mean", values=[1.0] * PROMPTS)
        return SuiteSamples(suite=suite.name, metric="acc", higher_is_better=True, metrics={"acc": values}, prompt_ids=[])


def opened(answers: Path, content: str | None, remembers: bool = False) -> Any:
    model = SimpleNamespace(
        asked=0, computed=0, load_seconds=0.0, generated_tokens=0, generation_seconds=0.0, unscored=None, told=None, drafts=[],
        store=SimpleNamespace(file=answers), remembers=remembers,
    )  # fmt: skip
    return SimpleNamespace(model=model, numerics="int8-cpu-w1024, batch 16", content=content, release=lambda: None)


@pytest.fixture
def measuring(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Measuring:
    """Of a base of a billion parameters, and of a candidate that is in no file."""
    own = tmp_path / "own.jsonl"
    own.write_text("".join(json.dumps({"prompt": str(n), "expected": "a"}) + "\n" for n in range(PROMPTS)), encoding="utf-8")
    clock = [0.0]
    monkeypatch.setattr("mcp_server.workers.evaluate.time.monotonic", lambda: clock[0])
    monkeypatch.setattr("mcp_server.workers.evaluate.parameters_of", lambda _: 1_000_000_000)
    monkeypatch.setattr(Measuring, "_scored", lambda _self, _models, _speeds, notes: notes)
    monkeypatch.setattr(minutes, "multiply_gflops", lambda: 184.0)
    found = Measuring.__new__(Measuring)
    found.request = EvaluateRequest(data=[str(own)], base=str(tiny.write_model(tmp_path / "base")))
    found.refs, found.exports = {"base": str(found.request.base)}, []
    found.suites = [find_suite(str(own))]
    found.limits, found.prompts = {"data_own": None}, {"data_own": PROMPTS}
    found.samples, found.start, found.at_work = {"data_own": {}}, 0.0, 0.0
    (tmp_path / "request.json").write_text(json.dumps({"kind": "evaluate", "parameters": {}}), encoding="utf-8")
    found.job, found.harness = Job(tmp_path), MadeUp(clock)  # type: ignore[assignment]
    return found


def test_a_candidate_that_is_in_no_file_is_measured_like_any_model(measuring: Measuring, tmp_path: Path) -> None:
    models = {"base": opened(tmp_path / "a.jsonl", "a" * 64), "merged": opened(tmp_path / "b.jsonl", "b" * 64)}
    notes: Any = measuring.run(models)
    assert [note.partition(",")[0] for note in notes] == ["own.jsonl was measured whole", "the weights were held in 8 bits"]
    assert set(measuring.samples["data_own"]) == {"base", "merged"}


def test_the_speed_of_a_suite_counts_prompts_and_not_the_answers_that_each_takes(measuring: Measuring, tmp_path: Path) -> None:
    measuring.run({"base": opened(tmp_path / "a.jsonl", "a" * 64)})
    assert minutes.rate_of(measuring.suites[0], "auto") == minutes.Rate(seconds=2.0, here=True)
    assert measuring.at_work == 2.0 * PROMPTS


def test_what_was_remembered_tells_no_speed(measuring: Measuring, tmp_path: Path) -> None:
    measuring.run({"base": opened(tmp_path / "a.jsonl", "a" * 64, remembers=True)})
    assert minutes.rate_of(measuring.suites[0], "auto").here is False


def test_the_next_estimate_learns_which_answers_are_known(measuring: Measuring, store: Path) -> None:
    from mcp_server.formats.content import content_hash
    from mcp_server.steps.evaluate.known import answers_file

    content = content_hash(Path(measuring.refs["base"]))
    answers = answers_file(content, "float32-cpu-w1024")
    answers.parent.mkdir(parents=True)
    answers.touch()
    measuring.run({"base": opened(answers, content)})
    assert known_prompts(measuring.refs, "float32", measuring.suites, None) == {("base", "data_own"): PROMPTS}
