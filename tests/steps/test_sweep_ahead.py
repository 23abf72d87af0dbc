"""What a sweep of a recipe's plan takes, beside the estimate of its merge."""

import shutil
from pathlib import Path

import pytest

from mcp_server.schemas.estimate import Estimate, Seconds, SweepEstimate
from mcp_server.schemas.plan import Plan
from mcp_server.steps.estimate import estimate, minutes
from mcp_server.steps.handles import keep_plan
from mcp_server.steps.render import render
from mcp_server.steps.sweep import shortlist
from mcp_server.steps.sweep.ahead import with_sweep
from tests.steps.test_sweep import plan

__all__ = ["plan"]


@pytest.fixture
def recipe(plan: Plan, store: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Of a plan that is kept, for models of a billion parameters on a machine where a prompt takes a second."""
    monkeypatch.setattr(minutes, "rate_of", lambda *_: minutes.Rate(seconds=1.0, here=True))
    monkeypatch.setattr(minutes, "multiply_gflops", lambda: 184.0)
    monkeypatch.setattr("mcp_server.steps.sweep.cost.parameters_of", lambda _: 1_000_000_000)
    return render(keep_plan(plan), {}).recipe


def ahead(recipe: str) -> SweepEstimate | None:
    return with_sweep(estimate(recipe), recipe).sweep


def test_the_shortlist_and_searches_are_estimated_by_the_suites_that_a_sweep_takes(recipe: str, plan: Plan) -> None:
    found = ahead(recipe)
    assert found is not None
    assert (found.candidates, found.suites) == (len(shortlist(plan)), ["perplexity", "task_api_tools", "taskmaster_persona"])
    assert list(found.within) == ["15", "60"], "three models on eight prompts of three suites take more than five minutes"
    assert 5 < found.least_minutes < 15
    few, many = ([int(word) for word in found.within[minutes].split(" to ")] for minutes in ("15", "60"))
    assert few[0] < many[0] <= many[-1]


def test_answers_that_are_known_make_a_search_shorter(recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = ahead(recipe)
    suites = ("perplexity", "task_api_tools", "taskmaster_persona")
    known = {(label, suite): 1000 for label in ("base", "persona", "tools") for suite in suites}
    monkeypatch.setattr("mcp_server.steps.sweep.cost.known_prompts", lambda *_: known)
    after = ahead(recipe)
    assert before is not None and after is not None
    assert after.least_minutes < before.least_minutes / 2
    assert "5" in after.within


def test_a_recipe_of_no_plan_has_no_sweep(recipe: str) -> None:
    assert ahead(recipe.partition("\n")[2]) is None


def test_what_cannot_be_known_here_is_left_open(recipe: str, plan: Plan) -> None:
    """The estimate of the merge stands all the same."""
    found = Estimate(engines={}, notes=["as it was"])
    shutil.rmtree(str(plan.scenario.base_model))
    assert with_sweep(found, recipe) == found


def test_it_is_one_line_for_people() -> None:
    found = SweepEstimate(
        candidates=24, seconds=Seconds(low=1200, high=2400), least_minutes=2.5, suites=["a", "b"],
        within={"5": "1 to 3", "15": "9"},
    )  # fmt: skip
    assert found.in_words() == (
        "a sweep of its plan: the 24 candidates of the shortlist take 20 to 40 min; a search for minutes needs 2.5 at least and "
        "tries 1 to 3 in 5, 9 in 15 (a, b)"
    )


def test_a_busy_machine_is_no_slower_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits for the processor widens a figure that was not measured here upwards, and nothing else."""
    monkeypatch.setattr(minutes, "usable_cores", lambda: 2)
    monkeypatch.setattr(minutes.os, "getloadavg", lambda: (6.0, 0.0, 0.0))
    assert minutes.between(10.0, sure=False) == Seconds(low=5.0, high=60.0)
    assert minutes.between(10.0, sure=True) == Seconds(low=7.1, high=14.1)
    monkeypatch.setattr(minutes.os, "getloadavg", lambda: (100.0, 0.0, 0.0))
    assert minutes.between(10.0, sure=False).high == 20.0 * minutes.CROWD
