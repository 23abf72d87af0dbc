"""What a person types is relative to where they stand; a job runs in a folder of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mcp_server import cli
from mcp_server.cli import evidence
from mcp_server.errors import BadInput
from mcp_server.schemas.job import JobRequest


class Stopped(BadInput):
    """Raised in place of starting a job."""


@pytest.fixture
def started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Parameters of the job that a command would have started, in a folder with models, a suite and a text."""
    for name in ("base", "persona", "tools", "merged", "my+model"):
        (tmp_path / name).mkdir()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "suite.yaml").write_text("metric: acc", encoding="utf-8")
    (tmp_path / "notes.txt").write_text("Some prose.", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    found: dict[str, Any] = {}

    def take(request: JobRequest, *, quiet: bool) -> dict[str, Any]:
        found.update(request.model_dump())
        raise Stopped("stopped", "")

    monkeypatch.setattr(evidence, "run_job", take)
    return found


def run(*arguments: str) -> None:
    assert cli.run(list(arguments)) == Stopped.exit_code


def test_compare_takes_folders_from_here(started: dict[str, Any], tmp_path: Path) -> None:
    run("compare", "base", "./persona", f"{tmp_path}/tools")
    assert started == {
        "base": f"{tmp_path}/base", "refs": [f"{tmp_path}/persona", f"{tmp_path}/tools"], "sample": False, "threads": None,
    }  # fmt: skip


def test_evaluate_takes_models_suites_and_texts_from_here(started: dict[str, Any], tmp_path: Path) -> None:
    run(
        "evaluate", "merged", "--against", "base=./base", "--against", "tools=./base+./tools", "--against", "./my+model",
        "--against", "hub=owner/name", "--suite", "./mine", "--suite", "notes.txt", "--suite", "perplexity",
        "--suite", "arc_easy", "--endpoint", "http://127.0.0.1:1/v1", "--tokenizer", "./base",
    )  # fmt: skip
    assert started["out"] == f"{tmp_path}/merged"
    assert started["against"] == {
        "base": f"{tmp_path}/base",
        "tools": f"{tmp_path}/base+{tmp_path}/tools",
        "model": f"{tmp_path}/my+model",
        "hub": "owner/name",
    }
    assert started["suites"] == [f"{tmp_path}/mine", f"{tmp_path}/notes.txt", "perplexity", "arc_easy"]
    assert started["tokenizer"] == f"{tmp_path}/base"


def test_sweep_takes_its_suites_from_here(started: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "plan.yaml").write_text("verdict: merge", encoding="utf-8")
    run("sweep", "plan.yaml", "out", "--suite", "notes.txt", "--suite", "general", "--ray", "auto", "--gpus", "1", "--cpus", "4")
    assert (started["ray"], started["cpus"], started["gpus"], started["memory_gib"]) == ("auto", 4, 1, 2)
    assert (started["plan"], started["out"]) == (f"{tmp_path}/plan.yaml", f"{tmp_path}/out")
    assert started["suites"] == [f"{tmp_path}/notes.txt", "general"]
