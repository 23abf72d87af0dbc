"""Verification's last check runs a loader in a process of its own: what each way of ending means. Only an answer is an answer."""

import json
import sys
from pathlib import Path

import pytest

from mcp_server.schemas.evidence import Check
from mcp_server.workers import verify
from mcp_server.workers.protocol import Job
from tests import tiny


@pytest.fixture
def job(tmp_path: Path) -> Job:
    folder = tmp_path / "job"
    folder.mkdir()
    out = tiny.write_model(tmp_path / "out")
    (folder / "request.json").write_text(json.dumps({"kind": "verify", "parameters": {"out": str(out)}}), encoding="utf-8")
    return Job(folder)


def loaded(job: Job, monkeypatch: pytest.MonkeyPatch, script: str) -> Check:
    """The check when the loader is this shell script; `$DIR` is its folder."""
    program = job.folder / "loader"
    program.write_text(f'#!/bin/sh\nDIR="$4"\n{script}\n', encoding="utf-8")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    return verify._loads(Path(job.parameters["out"]), job.parameters.get("base"), job)


@pytest.mark.parametrize(
    ("script", "passed", "words"),
    [
        ('echo \'{"loads": true, "detail": "it speaks"}\' > "$DIR/result.json"', True, "it speaks"),
        ('echo \'{"loads": false, "detail": "scores are not finite"}\' > "$DIR/result.json"', False, "scores are not finite"),
        ("kill -9 $$", None, "ended by signal 9, probably for want of memory"),
        (
            'echo \'{"type": "DoesNotFit", "message": "needs 9 GiB", "next_step": "free memory"}\' > "$DIR/error.json"; exit 1',
            None, "needs 9 GiB; free memory",
        ),
        (
            'echo \'{"type": "NotAModel", "message": "no config", "next_step": "restore it"}\' > "$DIR/error.json"; exit 2',
            False, "no config; restore it",
        ),
        ("echo 'ValueError: odd shapes'; exit 70", False, "transformers refuses it: ValueError: odd shapes"),
        ("exit 70", False, "no message"),
    ],
    ids=["loads", "not finite", "killed", "does not fit", "no model", "refused", "silent"],
)  # fmt: skip
def test_how_a_loader_ends_decides_what_is_known(
    job: Job, monkeypatch: pytest.MonkeyPatch, script: str, passed: bool | None, words: str
) -> None:
    found = loaded(job, monkeypatch, script)
    assert (found.name, found.passed) == ("loads", passed)
    assert words in found.detail


def test_a_loader_that_never_ends_is_no_answer(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "LOAD_SECONDS", 0.2)
    found = loaded(job, monkeypatch, "exec sleep 60")
    assert (found.passed, found.detail) == (None, "loading did not end within 0.2 s")


def test_a_merge_whose_loading_is_unknown_is_inconclusive_and_never_fine(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(out: Path, wanted: dict[str, object], told: Job) -> Check:
        return Check(name="loads", passed=None, detail="no memory")

    recipe = f"merge_method: passthrough\nmodels: [{{model: {job.parameters['out']}}}]\ndtype: bfloat16"
    (job.folder / "mine.yml").write_text(recipe, encoding="utf-8")
    job.parameters |= {"recipe": str(job.folder / "mine.yml"), "load": False}
    assert verify.main(job).verdict == "verified"
    job.parameters["load"] = True
    monkeypatch.setattr(verify, "_loads", unknown)
    assert verify.main(job).verdict == "inconclusive"
