"""Output, disk, memory and the planner: checked when they are given, skipped with a reason when not."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from mcp_server.errors import NotFound
from mcp_server.steps.validate import validate
from tests.checkpoints import write_model


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    models = [write_model(tmp_path / name) for name in ("a", "b")]
    entries = "".join(f"  - {{model: {model}, parameters: {{weight: 0.5}}}}\n" for model in models)
    return f"merge_method: linear\ndtype: bfloat16\nmodels:\n{entries}"


def codes(recipe: str, tmp_path: Path, **options: object) -> list[str]:
    return [f.code for f in validate(recipe, folder=tmp_path, **options).findings]  # type: ignore[arg-type]


def test_a_new_output_on_a_roomy_disk_is_fine(recipe: str, tmp_path: Path) -> None:
    assert codes(recipe, tmp_path, out=tmp_path / "new" / "merged", ram_gib=4) == []


def test_an_output_that_holds_something_is_refused(recipe: str, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    assert codes(recipe, tmp_path, out=tmp_path / "out") == []
    (tmp_path / "out" / "model.safetensors").touch()
    assert codes(recipe, tmp_path, out=tmp_path / "out") == ["MM501"]


@pytest.mark.parametrize("out", ["a", "a/merged", "."])
def test_an_output_at_inside_or_around_a_source_is_refused(recipe: str, tmp_path: Path, out: str) -> None:
    assert "MM504" in codes(recipe, tmp_path, out=tmp_path / out)


def test_too_little_disk_is_said_with_both_figures(recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1_000_000))
    found = validate(recipe, folder=tmp_path, out=tmp_path / "out").findings
    assert [f.code for f in found] == ["MM502"]
    assert "0.00 GiB are free" in found[0].message


def test_a_budget_that_no_engine_keeps_is_an_error(recipe: str, tmp_path: Path) -> None:
    assert codes(recipe, tmp_path, ram_gib=0.05) == ["MM503"]
    assert codes(recipe, tmp_path, ram_gib=12) == []


def test_what_was_not_given_is_skipped_with_a_reason(recipe: str, tmp_path: Path) -> None:
    skipped = validate(recipe, folder=tmp_path).skipped
    assert skipped == {
        "MM501": "no output was given",
        "MM502": "no output was given",
        "MM503": "no memory budget was given",
        "MM504": "no output was given",
        "MM505": "no output format was given",
    }


def test_deep_adds_what_the_planner_refuses(recipe: str, tmp_path: Path) -> None:
    found = validate(recipe, folder=tmp_path, deep=True, planner=lambda text, folder: ["Tensor x required but not present"])
    assert (found.ok, found.level, [f.code for f in found.findings]) == (False, "planner", ["MM701"])


def test_deep_reaches_the_planner_level_when_it_accepts(recipe: str, tmp_path: Path) -> None:
    asked: list[tuple[str, Path]] = []
    found = validate(recipe, folder=tmp_path, deep=True, planner=lambda text, folder: asked.append((text, folder)) or [])
    assert (found.ok, found.level, asked) == (True, "planner", [(recipe, tmp_path)])


def test_the_planner_is_not_asked_about_a_recipe_that_is_wrong_already(tmp_path: Path) -> None:
    found = validate("merge_method: tise", folder=tmp_path, deep=True, planner=lambda text, folder: pytest.fail("asked"))
    assert found.skipped["MM701"] == "the recipe has errors already"


def test_a_planner_that_lacks_a_model_leaves_the_question_open(recipe: str, tmp_path: Path) -> None:
    def planner(text: str, folder: Path) -> list[str]:
        raise NotFound("org/model is not on this machine", "hf download org/model")

    found = validate(recipe, folder=tmp_path, deep=True, planner=planner)
    assert (found.ok, found.level, found.skipped["MM701"]) == (True, "checkpoints", "org/model is not on this machine")


def test_a_base_that_only_adapters_need_is_not_all_that_can_be_done(tmp_path: Path) -> None:
    adapter = tmp_path / "lora"
    text = f"merge_method: task_arithmetic\nbase_model: {tmp_path}/gone\nmodels:\n"
    alone = text + f"  - {{model: {tmp_path}/gone+{adapter}, parameters: {{weight: 1}}}}\n"
    mixed = alone + f"  - {{model: {tmp_path}/gone2, parameters: {{weight: 1}}}}\n"
    said = [[f.fix for f in validate(one).findings if f.code == "MM301" and "gone" in f.message] for one in (alone, mixed)]
    assert ["--output adapter" in fix for fix in said[0]] == [True]
    assert ["--output adapter" in fix for fix in said[1]] == [False, False]
