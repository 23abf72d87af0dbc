"""Advice takes what was measured before, and weights near 1 wherever different skills must stay."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mcp_server.schemas.scenario import Scenario
from mcp_server.steps.recommend import advise
from mcp_server.steps.scenario import read_scenario
from tests.tiny import write_adapter, write_model

LEAK = {"coach": {"coach": 1.0, "api": 0.6}, "api": {"coach": 0.0, "api": 0.9}}


@pytest.fixture
def scenario(tmp_path: Path, store: Path) -> Scenario:
    base = write_model(tmp_path / "base")
    refs = {name: write_adapter(tmp_path / name, base, seed=seed) for seed, name in enumerate(("persona", "tools"), 1)}
    sources = [{"name": name, "ref": str(ref), "training_examples": 200 * 4**i} for i, (name, ref) in enumerate(refs.items())]
    relation = {"capabilities": "complementary", "data_overlap": 0.0, "similarity": "distinct"}
    return read_scenario({"sources": sources, "base_model": str(base), "relation": relation})


def leave_evaluation(store: Path, scenario: Scenario, name: str = "evaluate-20260101-000000-abcd", **changes: Any) -> None:
    refs = [str(source.ref) for source in scenario.sources or []]
    models = {"base": scenario.base_model, "coach": f"{scenario.base_model}+{refs[0]}", "api": refs[1], "merged": "/tmp/merged"}
    found = {"models": models, "cross_context": LEAK, "own_context": {"coach": "coach", "api": "api"}, **changes}
    folder = store / "jobs" / name
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps(found), encoding="utf-8")


def codes(scenario: Scenario) -> set[str]:
    return {warning.code for warning in advise(scenario).warnings}


def test_a_leak_that_was_measured_reaches_the_next_advice_by_itself(scenario: Scenario, store: Path) -> None:
    assert "leaks_across_context" not in codes(scenario)
    leave_evaluation(store, scenario)
    assert "leaks_across_context" in codes(scenario)
    assert advise(scenario).scenario.cross_context == {"persona": LEAK["coach"], "tools": LEAK["api"]}


def test_what_the_scenario_says_wins_over_an_older_measurement(scenario: Scenario, store: Path) -> None:
    leave_evaluation(store, scenario)
    said = {"persona": {"coach": 1.0, "api": 0.0}}
    assert advise(scenario.model_copy(update={"cross_context": said})).scenario.cross_context == said


@pytest.mark.parametrize(
    "other", [{"models": {"coach": "/a", "api": "/b"}}, {"models": {}}, {"cross_context": {}}, {"cross_context": 3}]
)
def test_measurements_of_others_are_left_alone(scenario: Scenario, store: Path, other: dict[str, Any]) -> None:
    leave_evaluation(store, scenario, **other)
    assert advise(scenario).scenario.cross_context is None


def test_the_baseline_of_different_skills_takes_each_whole(scenario: Scenario) -> None:
    plan = advise(scenario.model_copy(update={"goal": "baseline"}))
    assert (plan.strategy and plan.strategy.id, plan.weights) == ("task_arithmetic", {"persona": 1.0, "tools": 1.0})


def test_an_average_of_different_skills_is_warned_about_with_the_way_out(scenario: Scenario) -> None:
    plan = advise(scenario.model_copy(update={"strategy": "linear"}))
    (warning,) = [warning.message for warning in plan.warnings if warning.code == "averages_dilute"]
    assert plan.strategy and plan.strategy.id == "linear"
    assert "--set strategy=task_arithmetic" in warning
    alike = scenario.relation and scenario.relation.model_copy(
        update={"capabilities": None, "similarity": "similar", "cosine": 0.95}
    )
    assert "averages_dilute" not in codes(scenario.model_copy(update={"strategy": "linear", "relation": alike}))


def test_papers_that_contradict_each_other_are_both_named(scenario: Scenario) -> None:
    sources = [source.model_copy(update={"training": "rl"}) for source in scenario.sources or []]
    plan = advise(scenario.model_copy(update={"sources": sources}))
    (warning,) = [warning.message for warning in plan.warnings if warning.code == "rl_papers_disagree"]
    assert "2601.13572" in warning and "2606.18521" in warning
    assert "ram" in [one.strategy for one in plan.runner_up]
    assert "rl_papers_disagree" not in codes(scenario)
