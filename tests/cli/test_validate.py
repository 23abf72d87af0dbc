"""validate as people run it: places in the file, the diff of a correction, standard input, and what a code means."""

from __future__ import annotations

import errno
import io
import json
import os
from pathlib import Path

import pytest

from mcp_server.cli import run

TEXT = "merge_method: tise\r\nbase_model: o/b\r\nmodels:\r\n  - model: o/a   # why\r\n    parameters: {weight: 1}\r\n"


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "none"))
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "recipe.yml"
    path.write_bytes(TEXT.encode())
    return path


def test_a_finding_begins_with_file_line_and_column(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["validate", "recipe.yml"]) == 1
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("recipe.yml:1:1 (merge_method): error MM107: there is no merge_method 'tise'")
    assert printed[-1] == "invalid (checked as far as: yaml)"


def test_fix_shows_the_diff_and_keeps_the_old_file_to_the_byte(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["validate", "recipe.yml", "--fix"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert "-merge_method: tise" in printed
    assert "+merge_method: ties" in printed
    assert (recipe.parent / "recipe.yml.orig").read_bytes() == TEXT.encode()
    assert recipe.read_bytes() == TEXT.replace("tise", "ties").encode()


def test_a_corrected_recipe_is_judged_by_the_same_options(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tests.checkpoints import write_model

    for name in ("b", "a"):
        write_model(recipe.parent / "o" / name)
    recipe.write_text(TEXT.replace("o/", "./o/"), encoding="utf-8")
    assert run(["validate", "recipe.yml", "--fix", "--output-format", "fp8", "--ram-gib", "0.01", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert "MM107" in {finding["code"] for finding in found["before"]}
    assert {finding["code"] for finding in found["findings"] if finding["severity"] == "error"} == {"MM505"}


def test_an_older_original_is_never_replaced(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (recipe.parent / "recipe.yml.orig").write_text("mine", encoding="utf-8")
    assert run(["validate", "recipe.yml", "--fix"]) == 2
    assert (recipe.read_bytes(), (recipe.parent / "recipe.yml.orig").read_bytes()) == (TEXT.encode(), b"mine")


def test_a_correction_whose_write_fails_leaves_the_recipe_and_can_be_repeated(
    recipe: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.fsync

    def full(handle: int) -> None:
        if "orig" not in Path(f"/proc/self/fd/{handle}").readlink().name:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(handle)

    monkeypatch.setattr("os.fsync", full)
    assert run(["validate", "recipe.yml", "--fix"]) == 4
    assert recipe.read_bytes() == TEXT.encode()
    monkeypatch.undo()
    monkeypatch.chdir(recipe.parent)
    assert run(["validate", "recipe.yml", "--fix"]) == 0
    assert recipe.read_bytes() == TEXT.replace("tise", "ties").encode()


def test_a_correction_keeps_a_link_and_the_mode_of_what_it_leads_to(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe.chmod(0o600)
    Path("link.yml").symlink_to("recipe.yml")
    assert run(["validate", "link.yml", "--fix"]) == 0
    assert Path("link.yml").is_symlink()
    assert recipe.read_bytes() == TEXT.replace("tise", "ties").encode()
    assert recipe.stat().st_mode & 0o777 == 0o600


def test_standard_input_is_a_recipe_too(
    recipe: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(TEXT.encode()), newline=""))
    assert run(["validate", "-", "--fix", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["ok"], found["fixed_recipe"]) == (True, TEXT.replace("tise", "ties"))
    assert [(f["code"], f["line"]) for f in found["before"] if f["severity"] == "error"] == [("MM107", 1)]
    assert recipe.read_bytes() == TEXT.encode()


def test_a_code_is_explained_in_any_case_and_a_wrong_one_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["validate", "--explain", "mm207"]) == 0
    assert capsys.readouterr().out.startswith("MM207 Value outside its legal range (error)\n")
    assert run(["validate", "--explain", "MM999", "--json"]) == 2
    assert run(["validate"]) == 2


def test_control_characters_of_a_recipe_do_not_reach_the_terminal(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe.write_text('merge_method: tise\nbase_model: "o/\\e[31mb"\nmodels:\n  - model: "o/\\e[2Ja"\n', encoding="utf-8")
    run(["validate", "recipe.yml", "--fix"])
    assert "\x1b" not in capsys.readouterr().out
