"""Asking mergekit's own planner, in a process of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from mcp_server.errors import NotFound
from mcp_server.jobs.ask import ask_planner
from mcp_server.steps.validate import validate
from tests.checkpoints import write_lora, write_model

pytestmark = pytest.mark.slow  # each question imports mergekit and torch: 6–20 s


def test_the_planner_accepts_adapters_slices_and_stages_and_names_what_is_missing(tmp_path: Path) -> None:
    """One recipe of four stages, because one question costs seconds: three that are fine, and one past the last layer."""
    base = write_model(tmp_path / "base", layers=2)
    tuned = write_model(tmp_path / "tuned", layers=2)
    adapter = write_lora(tmp_path / "lora", str(base))
    recipe = f"""
name: adapters
merge_method: ties
base_model: ./base
models: [{{model: ./base+./lora}}, {{model: {tuned}}}]
parameters: {{weight: 1, density: 0.5}}
---
name: slices
merge_method: slerp
base_model: {base}
slices: [{{sources: [{{model: {base}, layer_range: [0, 2]}}, {{model: {tuned}, layer_range: [0, 2]}}]}}]
parameters: {{t: 0.5}}
---
name: deep
merge_method: passthrough
slices: [{{sources: [{{model: {base}, layer_range: [0, 3]}}]}}]
---
merge_method: linear
models: [{{model: adapters}}, {{model: slices}}]
parameters: {{weight: 1}}
"""
    problems = ask_planner(recipe, tmp_path)
    assert adapter.is_dir()
    assert all(problem.startswith("stage 3: ") for problem in problems)
    assert f"Tensor model.layers.2.mlp.up_proj.weight required but not present in model {base}" in "\n".join(problems) or (
        "more tensors" in problems[-1] and "model.layers.2." in problems[0]
    )


def test_an_architecture_that_mergekit_cannot_plan_becomes_a_finding(tmp_path: Path) -> None:
    models = [write_model(tmp_path / name, architecture="UnheardOfModel", model_type="unheard-of") for name in ("a", "b")]
    recipe = f"merge_method: linear\nmodels: [{{model: {models[0]}}}, {{model: {models[1]}}}]\nparameters: {{weight: 1}}\n"
    assert validate(recipe, folder=tmp_path).ok
    found = validate(recipe, folder=tmp_path, deep=True, planner=ask_planner)
    assert (found.ok, found.level, {f.code for f in found.findings}) == (False, "planner", {"MM701"})


def test_a_model_that_is_not_here_cannot_be_asked_about(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(NotFound, match="org/model is not on this machine"):
        ask_planner("merge_method: linear\nmodels: [{model: org/model}]\nparameters: {weight: 1}", tmp_path)
