"""One command from sources to a merge, and the manners of the commands around it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mcp_server import cli
from mcp_server.cli import going
from mcp_server.schemas.evidence import Verification
from tests.tiny import write_adapter, write_model


@pytest.fixture
def folder(tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """base/, persona/ and tools/ in the current folder; whether the result loads in transformers is not this file's subject."""
    monkeypatch.chdir(tmp_path)
    base = write_model(tmp_path / "base")
    write_adapter(tmp_path / "persona", base, seed=1)
    write_adapter(tmp_path / "tools", base, seed=2)
    verified = Verification(verdict="verified", checks=[]).model_dump(mode="json")
    monkeypatch.setattr(going, "run_job", lambda *_, **__: verified)
    return tmp_path


def answer(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict]:
    capsys.readouterr()
    code = cli.run([*arguments, "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_open_questions_stop_a_merge_that_nobody_agreed_to(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, found = answer(capsys, "go", "./persona", "./tools", "--base", "./base")
    assert (code, found["job"]) == (3, None)
    assert found["prepared"]["questions"]
    assert not (folder / "merged").exists()


def test_one_command_leaves_a_model_its_plan_and_its_report(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, found = answer(capsys, "go", "./persona", "./tools", "--base", "./base", "--yes", "--suite", "none")
    assert (code, found["verification"], found["evaluation"]) == (0, "verified", None)
    assert {"model.safetensors", "plan.yaml", "report.html"} <= {file.name for file in (folder / "merged").iterdir()}


def test_advice_against_the_merge_starts_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = json.loads((folder / "tools" / "adapter_config.json").read_text(encoding="utf-8"))
    other = write_model(folder / "other", seed=4)
    (folder / "tools" / "adapter_config.json").write_text(
        json.dumps(config | {"base_model_name_or_path": str(other)}), encoding="utf-8"
    )
    code, found = answer(capsys, "go", "./persona", "./tools", "--base", "./base", "--yes")
    assert (code, found["prepared"]["verdict"], found["job"]) == (1, "cannot_merge", None)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["./persona", "./tols"], "tols does not exist"),
        (["./persona", "./tools", "--base", "./bse"], "bse does not exist"),
        (["./persona", "./tools", "--base", "./base", "--suite", "task_api_tool"], "Did you mean 'task_api_tools'"),
        (["./persona", "./tools", "--base", "./base", "--out", "./persona"], "persona exists"),
        (["./persona", "./tools", "--base", "./base", "--data", "./prompts.jsonl"], "prompts.jsonl"),
        (["scenario.yaml", "--base", "./base"], "which names its own"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_asked(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], named: str
) -> None:
    assert cli.run(["go", *arguments]) == 2
    said = capsys.readouterr()
    assert named in said.err and said.out == ""


def test_a_base_that_is_not_here_is_named_with_the_command_that_brings_it(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, found = answer(capsys, "go", "./persona", "./tools", "--base", "org/model", "--yes")
    assert (code, found["job"], found["prepared"]["absent"]) == (1, None, ["org/model"])
    assert found["next"] == "model-merging fetch org/model"


def test_init_writes_a_scenario_that_go_takes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["init"]) == 0
    code, found = answer(capsys, "go", "scenario.yaml", "--yes", "--suite", "none")
    assert (code, sorted(found["prepared"]["weights"])) == (0, ["persona", "tools"])


def test_a_plan_fits_a_screen_and_ends_with_the_next_command(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cli.run(["init"])
    capsys.readouterr()
    assert cli.run(["recommend", "scenario.yaml"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 24
    assert [text.split()[0] for text in lines[-2:]] == ["verdict", "next"]
    assert "model-merging render plan-" in lines[-1]


@pytest.mark.parametrize(("arguments", "said"), [(["--version"], "model-merging "), (["-h"], "Usage"), (["strategies"], "slerp")])
def test_what_every_command_line_answers(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(arguments) == 0
    assert said in capsys.readouterr().out
