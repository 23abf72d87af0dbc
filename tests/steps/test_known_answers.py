"""What is remembered of earlier evaluations makes the next one shorter, and is said before it starts."""

from pathlib import Path

import pytest

from mcp_server import jobs
from mcp_server.formats.content import content_hash
from mcp_server.formats.lineage import Lineage
from mcp_server.formats.suites import find_suite
from mcp_server.schemas.job import EvaluateRequest
from mcp_server.steps.estimate import minutes
from mcp_server.steps.estimate.of_job import takes
from mcp_server.steps.evaluate.held import held_for
from mcp_server.steps.evaluate.known import answers_file, known_prompts, note_answered
from mcp_server.steps.evaluate.line_up import refs_of, suites_of
from tests import tiny

FAKE = "tests.fake_worker"


@pytest.fixture
def models(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """A base and an adapter on it, on a machine where a prompt and a billion parameters take a billion seconds."""
    monkeypatch.setattr(minutes, "rate_of", lambda *_: minutes.Rate(seconds=1e9, here=True))
    monkeypatch.setattr(minutes, "multiply_gflops", lambda: 184.0)
    base = tiny.write_model(tmp_path / "base")
    return {"base": str(base), "tools": f"{base}+{tiny.write_adapter(tmp_path / 'tools', base)}"}


def remember(ref: str, suite: str, split: str | None, prompts: int, held: str | None = None) -> Path:
    """As a worker that measured the model: its files were read, its answers lie in the store."""
    base, *adapter = map(Path, ref.split("+"))
    answers = answers_file(content_hash(base, *adapter), f"{held or held_for('auto', {'m': ref})}-cpu-w1024")
    note_answered(answers, find_suite(suite), split, prompts)  # type: ignore[arg-type]
    answers.touch()
    return answers


def asked(models: dict[str, str], **more: object) -> tuple[float, str]:
    """(seconds, what is said of known answers)."""
    request = EvaluateRequest.of({"base": models["base"], "sources": {"tools": models["tools"]}, **more})
    refs, _ = refs_of(request, Lineage())
    seconds, known = takes(request, refs, suites_of(request, refs))
    assert seconds is not None
    return seconds.high, known


def test_answers_that_are_remembered_are_not_estimated_and_are_named(models: dict[str, str]) -> None:
    wanted = {"suites": ["task_api_tools", "refusals"], "limit": 10}
    everything, none = asked(models, **wanted)
    remember(models["base"], "task_api_tools", None, 24)
    remember(models["base"], "refusals", "dev", 4)
    less, some = asked(models, **wanted)
    assert (none, some) == ("", "14 of 40 answers are known")
    assert less == pytest.approx(everything * 26 / 40, rel=0.01)


def test_a_model_that_answered_everything_is_not_loaded_again(models: dict[str, str]) -> None:
    for ref in models.values():
        remember(ref, "task_api_tools", None, 24)
    minutes.note_start(5.0)
    assert asked(models, suites=["task_api_tools"], limit=24) == (pytest.approx(5 * 2**0.5, abs=0.1), "all 48 answers are known")


def test_a_job_says_how_many_answers_are_known_before_it_begins(models: dict[str, str]) -> None:
    remember(models["base"], "task_api_tools", None, 6)
    request = EvaluateRequest(base=models["base"], suites=["task_api_tools"], limit=24, sources={"tools": models["tools"]})
    assert jobs.start(request, worker=FAKE).takes.endswith("; 6 of 48 answers are known")


@pytest.mark.parametrize("change", ["weights", "suite", "split", "numerics", "answers"])
def test_what_was_answered_otherwise_is_not_known(models: dict[str, str], tmp_path: Path, change: str) -> None:
    own = tmp_path / "own.jsonl"
    own.write_text('{"prompt": "a", "expected": "b"}\n{"prompt": "c", "expected": "d"}\n', encoding="utf-8")
    answers = remember(models["base"], str(own), None, 2, held="int4" if change == "numerics" else None)
    if change == "weights":
        file = Path(models["base"]) / "model.safetensors"
        file.write_bytes(file.read_bytes()[:-1] + b"\7")
    if change == "suite":
        own.write_text(own.read_text(encoding="utf-8").replace("a", "e"), encoding="utf-8")
    if change == "answers":
        answers.unlink()
    split = "dev" if change == "split" else None
    held = held_for("auto", models)
    assert known_prompts(models, held, [find_suite(str(own))], split) == {}  # type: ignore[arg-type]
