"""A whole sweep over real merges of a tiny language model: chosen on dev, reported on test, continued after an interruption."""

import json
from pathlib import Path
from typing import Any

import pytest

from mcp_server.core.models.evidence import Sweep
from tests.workers.test_evaluate_worker import place, run

pytestmark = pytest.mark.slow
__all__ = ["place"]


def plan(place: Path) -> dict[str, Any]:
    return {
        "verdict": "merge",
        "strategy": {"id": "task_arithmetic", "parameters": {"lambda": 1.0}},
        "weights": {"other": 1.0, "tuned": 1.0},
        "dtype": "float32",
        "scenario": {
            "base_model": str(place / "base"),
            "sources": [
                {"name": "other", "ref": str(place / "other"), "kind": "full"},
                {"name": "tuned", "ref": str(place / "adapter"), "kind": "lora"},
            ],
        },
    }


def test_a_sweep_measures_chooses_and_writes_the_winner(place: Path, tmp_path: Path) -> None:
    out = tmp_path / "sweep"
    parameters = {
        "plan": plan(place), "out": str(out), "suites": ["echo", "perplexity"], "suite_folders": [str(place / "suites")],
        "grid": ["strategy=task_arithmetic,linear", "sources.tuned.weight=0.5,1"], "limit": 6, "quick_limit": 3,
        "dtype": "float32", "workers": 2,
    }  # fmt: skip
    status, result = run("sweep", tmp_path / "job", tmp_path / "home", **parameters)
    assert status == 0
    found = Sweep.model_validate(result)
    assert [c.settings["strategy"] for c in found.candidates] == ["task_arithmetic", "task_arithmetic", "linear", "linear"]
    assert json.loads((out / "sweep.json").read_text(encoding="utf-8")) == result
    assert (out / "sweep.md").is_file()
    measured = [c for c in found.candidates if c.stopped is None]
    for candidate in measured:
        assert candidate.prompts == {"echoing": 6, "general language": 6}
    if found.winner is None:
        assert measured == []
        return
    assert found.winner in {c.name for c in measured}
    assert found.test is not None
    assert found.test.split == "test"
    assert (out / "merged" / "model.safetensors").is_file()
    assert not list((out / "work").glob("*/model/model.safetensors"))
    status, again = run("sweep", tmp_path / "again", tmp_path / "home", **parameters)
    assert status == 0
    assert {c["name"]: c["attempts"] for c in again["candidates"]} == {c.name: 2 for c in found.candidates}
    assert [c["scores"] for c in again["candidates"]] == [c.scores for c in found.candidates]
