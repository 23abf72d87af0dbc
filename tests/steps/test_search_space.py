"""What a search may change of a plan, and how a point is written as settings and read back."""

import json
import re
from pathlib import Path

import pytest

from mcp_server import jobs
from mcp_server.errors import BadInput
from mcp_server.formats.recipe import read_recipe
from mcp_server.schemas.evidence import Interval, SweepCandidate
from mcp_server.schemas.job import SweepRequest
from mcp_server.schemas.plan import Plan
from mcp_server.steps.estimate import minutes
from mcp_server.steps.evaluate import held
from mcp_server.steps.sweep import shortlist
from mcp_server.steps.sweep.candidates import candidate_of
from mcp_server.steps.sweep.choose import beaten, ranked
from mcp_server.steps.sweep.cost import takes, within
from mcp_server.steps.sweep.place import lineage_of_plan
from mcp_server.steps.sweep.space import Space
from tests.steps.test_sweep import LIMITS, plan

__all__ = ["plan"]


def request_of(plan: Plan, tmp_path: Path, **changes: object) -> SweepRequest:
    file = tmp_path / "plan.yaml"
    file.write_text(json.dumps(plan.model_dump(mode="json")), encoding="utf-8")
    return SweepRequest.of({"plan": str(file), "out": str(tmp_path / "out"), "suites": ["task_api_tools"], **changes})


def test_every_candidate_of_the_shortlist_has_its_place_in_the_search(plan: Plan) -> None:
    candidates = shortlist(plan)
    space = Space(plan, candidates)
    points = {candidate.name: space.point_of(candidate) for candidate in candidates}
    assert points["ties"] == {
        "method": "ties", "lambda": 1.0, "density": 0.5, "sum_one.persona": 0.4, "sum_one.tools": 0.6, "graded": False,
    }  # fmt: skip
    assert all(points.values())


def test_a_point_becomes_the_recipe_that_it_says(plan: Plan) -> None:
    space = Space(plan, shortlist(plan))
    point = {
        "method": "dare_ties", "lambda": 0.7123, "density": 0.42, "whole.persona": 1.0, "whole.tools": 0.6, "graded": True,
        "depth.persona": 0.2, "depth.tools": 0.0,
    }  # fmt: skip
    settings = space.settings_of(point)
    assert settings == {
        "strategy": "dare_ties", "parameters.lambda": "0.7", "parameters.density": "0.4",
        "sources.persona.weight": "[0.8, 1.2]", "sources.tools.weight": "0.6",
    }  # fmt: skip
    recipe = read_recipe(candidate_of(plan, settings).recipe)
    weights = [source.parameters["weight"] for source in recipe.models]
    assert (recipe.method, recipe.parameters["lambda"], weights) == ("dare_ties", 0.7, [[0.8, 1.2], 0.6])


def test_minutes_too_few_for_one_candidate_are_refused_with_the_figure(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a base of a billion parameters at 2 s a prompt: (3 + 1 + 4) models × 8 prompts × 2 s, and loading."""
    monkeypatch.setattr(minutes, "rate_of", lambda *_: minutes.Rate(seconds=2.0, here=True))
    monkeypatch.setattr(minutes, "multiply_gflops", lambda: 184.0)
    monkeypatch.setattr("mcp_server.steps.sweep.cost.parameters_of", lambda _: 1_000_000_000)
    lineage = lineage_of_plan(plan, tmp_path, shortlist(plan)[0].recipe)
    with pytest.raises(BadInput, match=r"1 minutes are too few for one candidate.*8 prompts a suite take about 4\.\d minutes"):
        within(request_of(plan, tmp_path, minutes=1), lineage)
    with pytest.raises(BadInput, match=r"on 200 prompts a suite take"):
        within(request_of(plan, tmp_path, minutes=10, limit=200), lineage)
    monkeypatch.setattr(minutes, "rate_of", lambda *_: minutes.Rate(seconds=2.0, here=False))
    with pytest.raises(BadInput, match=r"1 minutes are too few for one candidate.* take at least 2\.\d minutes"):
        within(request_of(plan, tmp_path, minutes=1), lineage)
    monkeypatch.setattr(minutes, "rate_of", lambda *_: minutes.Rate(seconds=2.0, here=True))
    few, many = (within(request_of(plan, tmp_path, minutes=m), lineage).limit for m in (10, 200))
    assert few is not None and many is not None and few < many
    assert within(request_of(plan, tmp_path, minutes=100, limit=11), lineage).limit == 11


def test_a_list_of_candidates_takes_longer_the_longer_it_is(plan: Plan, tmp_path: Path, store: Path) -> None:
    lineage = lineage_of_plan(plan, tmp_path, shortlist(plan)[0].recipe)
    request = request_of(plan, tmp_path)
    short, long = takes(request, lineage, 1), takes(request, lineage, 24)
    assert short is not None and long is not None
    assert 0 < short.low < long.low < long.high


def test_a_sweep_in_few_bits_says_before_it_starts_that_its_candidates_go_to_the_disk(
    plan: Plan, tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = request_of(plan, tmp_path)
    assert "bits" not in jobs.start(request, worker="tests.fake_worker").takes
    base = plan.scenario.base_model or ""
    monkeypatch.setattr(held, "available_bytes", lambda: held.needed_bytes(Path(base), "int8"))
    monkeypatch.setattr(held, "anon_bytes", lambda: 0)
    said = jobs.start(request.model_copy(update={"out": str(tmp_path / "other")}), worker="tests.fake_worker").takes
    assert re.search(r"; weights in 8 bits, because .* are free; so every candidate is merged to disk, quantised while it", said)


def test_minutes_are_what_a_search_takes(plan: Plan, tmp_path: Path, store: Path) -> None:
    lineage = lineage_of_plan(plan, tmp_path, shortlist(plan)[0].recipe)
    found = takes(request_of(plan, tmp_path, minutes=15), lineage, 24)
    assert found is not None
    assert found.high == 900


def measured(name: str, gain: float, low: float, high: float, **more: object) -> SweepCandidate:
    return SweepCandidate.model_validate(
        {"name": name, "recipe": "", "gains": {"tools": gain}, "intervals": {"tools": Interval(low=low, high=high)}, **more}
    )


def test_few_prompts_end_what_cannot_reach_the_leader_and_nothing_else() -> None:
    leader = measured("leader", 0.8, 0.7, 0.9)
    assert beaten(measured("close", 0.6, 0.3, 0.85), leader, LIMITS) is None
    assert "at most 65%" in str(beaten(measured("far", 0.4, 0.2, 0.65, prompts={"tools": 8}), leader, LIMITS))


def test_leaders_stand_by_their_worst_figure_and_what_was_stopped_stands_behind() -> None:
    found = [
        measured("stopped", 0.9, 0.8, 1.0, stopped="time"),
        measured("second", 0.5, 0.4, 0.6),
        measured("first", 0.7, 0.6, 0.8),
        SweepCandidate(name="failed", recipe="", stopped="failed: no"),
    ]
    assert [one.name for one in ranked(found, LIMITS)] == ["first", "second", "stopped"]
