"""What every command does alike: tables that fit, words that stay whole, `-q`, `--detach`, and plain progress off a terminal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import pytest

from mcp_server import cli
from mcp_server.cli import console, merging, waiting
from mcp_server.cli.tables import laid_out
from mcp_server.schemas.job import JobKind, JobStatus, Progress
from tests.tiny import write_adapter, write_model

LONG = "/a/path/that/is/longer/than/half/of/a/terminal/adapter-20261127-112957-zypt"


def test_a_table_that_fits_has_aligned_columns_and_no_lines() -> None:
    assert [*laid_out(["name", "n"], [["persona", "8"], ["tools", "16"]], 80, right=[1])] == [
        "name      n",
        "persona   8",
        "tools    16",
    ]


def test_columns_that_are_unknown_throughout_make_room_first() -> None:
    rows = [[LONG, "–", "lora"], [LONG, "–", "full"]]
    assert [*laid_out(["source", "hidden size", "kind"], rows, 82)] == [
        f"source{' ' * (len(LONG) - 6)}  kind",
        f"{LONG}  lora",
        f"{LONG}  full",
    ]


@pytest.mark.parametrize("width", [20, 40, 80])
def test_no_path_and_no_id_is_broken_whatever_the_width(width: int) -> None:
    lines = [*laid_out(["job", "state", "about"], [[LONG, "succeeded", "ties of persona and tools on base"]], width)]
    assert LONG in " ".join(lines).split()


def test_a_long_text_wraps_in_its_own_column() -> None:
    lines = [*laid_out(["id", "idea"], [["ties", "elect a sign for each value, then average what agrees"]], 40)]
    assert lines == [
        "id    idea",
        "ties  elect a sign for each value, then",
        "      average what agrees",
    ]
    assert max(map(len, lines)) <= 40


def test_off_a_terminal_nothing_is_wrapped() -> None:
    assert [*laid_out(["path"], [[LONG * 3]], None)] == ["path", LONG * 3]


@pytest.fixture
def folder(tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    base = write_model(tmp_path / "base")
    write_adapter(tmp_path / "persona", base, seed=1)
    write_adapter(tmp_path / "tools", base, seed=2)
    return tmp_path


def test_a_detached_job_is_waited_for_and_shown_as_its_command_shows_it(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["compare", "./base", "./persona", "./tools", "--detach"]) == 0
    started, following = (line.split()[-1] for line in capsys.readouterr().out.splitlines())
    assert started == following
    assert cli.run(["wait", started, "--json"]) == 0
    assert {pair["between"][0] for pair in json.loads(capsys.readouterr().out)["pairs"]} == {"persona"}


def test_detach_is_refused_beside_what_needs_the_result(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["compare", "./base", "./persona", "--detach", "-o", "c.json"]) == 2
    assert "--detach does not wait" in capsys.readouterr().err


def test_every_command_takes_quiet_and_every_job_takes_detach(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("inspect", "merge", "compare", "verify", "evaluate", "sweep", "fetch", "export", "publish", "extract", "resume"):
        assert cli.run([name, "--help"]) == 0
        said = capsys.readouterr().out
        assert "--quiet" in said, name
        assert ("--detach" in said) == (name != "inspect"), name


def test_progress_in_a_log_is_a_line_for_each_stage(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(console.time, "monotonic", lambda: 100.0)
    job = {"job_id": "merge-1", "kind": "merge", "state": "running", "created": "", "log_path": ""}
    with console.progress_of("merge") as follow:
        for stage, done in (("read", 1), ("read", 2), ("write", 1)):
            follow(JobStatus.model_validate({**job, "progress": Progress(stage=stage, done=done, total=2, unit="tensors")}))
    assert capsys.readouterr().err.splitlines() == ["merge: read 1/2 tensors", "merge: write 1/2 tensors"]


def test_quiet_says_nothing_but_the_result(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cli.run(["init", "-q"])
    assert cli.run(["recommend", "scenario.yaml", "-o", "plan.yaml", "-q"]) == 0
    assert capsys.readouterr().err == ""


def test_a_missing_demo_base_is_named_with_the_command_that_makes_it(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    demo = "demo:smollm2-135m-instruct"
    Path("recipe.yml").write_text(
        f"merge_method: linear\nmodels:\n  - {{model: '{demo}+./persona', parameters: {{weight: 1}}}}\n"
        f"  - {{model: '{demo}+./tools', parameters: {{weight: 1}}}}\n",
        encoding="utf-8",
    )
    for command in (["merge", "recipe.yml", "out"], ["compare", demo, "./persona"]):
        code = cli.run(command)
        said = capsys.readouterr()
        assert (code, f"model-merging fetch {demo}" in said.err) == (2, True), (command, said)
    assert cli.run(["validate", "recipe.yml"]) == 1
    assert f"model-merging fetch {demo}" in capsys.readouterr().out


def test_the_result_of_every_kind_of_job_can_be_read_and_shown() -> None:
    assert set(merging.RESULTS) == set(waiting.RESULTS) == set(get_args(JobKind))
