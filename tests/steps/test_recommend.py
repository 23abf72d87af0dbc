"""The recommender held against the scenario table, and what makes its answers trustworthy."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from mcp_server import catalog
from mcp_server.catalog.signals import SeenScenario
from mcp_server.errors import NotFound
from mcp_server.schemas.plan import Observed, Plan
from mcp_server.schemas.scenario import Scenario
from mcp_server.steps.recommend import plan_for, read_scenario, recommend

TABLE = yaml.safe_load((Path(__file__).parent / "scenarios.yaml").read_text(encoding="utf-8"))


def rules_of(plan: Plan) -> set[str]:
    """The ids of every rule that put a line into a plan."""
    asked = {rule.id for rule in catalog.load().rules if rule.ask in plan.questions}
    return asked | {rule.id for rule in plan.rules} | {one.rule for one in [*plan.runner_up, *plan.evaluation]}


def plan_of(case: dict[str, Any]) -> Plan:
    scenario = read_scenario(case["scenario"])
    if "observed" not in case:
        return recommend(scenario)
    said = {name: getattr(scenario, name) for name in Scenario.model_fields}
    return plan_for(SeenScenario(**said, observed=Observed(**case["observed"])))


@pytest.mark.parametrize("case", TABLE, ids=[case["name"] for case in TABLE])
def test_the_scenario_table_holds(case: dict[str, Any]) -> None:
    plan = plan_of(case)
    warned = {warning.code for warning in plan.warnings}
    fired = [rule.id for rule in plan.rules]
    assert plan.verdict == case["verdict"]
    assert (plan.strategy.id if plan.strategy else None) == case["strategy"]
    assert fired[: len(case["by"])] == case["by"]
    assert any(case["source"] in rule.source for rule in plan.rules[: len(case["by"])])
    assert set(case.get("warns", [])) <= warned
    assert not set(case.get("silent", [])) & warned
    assert plan.decided is case.get("decided", True)
    if "weights" in case:
        assert plan.weights == case["weights"]
    if "parameters" in case:
        assert plan.strategy is not None
        assert plan.strategy.parameters == case["parameters"]
    if "then" in case:
        assert plan.runner_up[0].strategy == case["then"]
    assert set(case.get("measures", [])) <= {step.suite for step in plan.evaluation}
    text = " ".join([*(w.message for w in plan.warnings), *plan.questions])
    for piece in [*case.get("says", []), *case.get("asks", [])]:
        assert piece in text
    assert [d.split(" ")[0] for d in plan.differences] == case.get("differences", [d.split(" ")[0] for d in plan.differences])


def test_the_verification_prompt_gets_a_memory_plan_that_fits() -> None:
    engine = plan_of(TABLE[0]).engine
    assert engine is not None
    assert engine.fits is True
    assert engine.peak_anon_bytes is not None
    assert 0 < engine.peak_anon_bytes < 12 * 2**30


def test_every_test_that_ticks_a_criterion_of_the_learning_spec_exists() -> None:
    root = Path(__file__).parents[2]
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", (root / "LEARNING-SPEC.md").read_text(encoding="utf-8"))
    assert len(named) >= 8
    missing = [test for file, test in named if f"def {test}(" not in (root / file).read_text(encoding="utf-8")]
    assert missing == []


def test_the_table_has_at_least_sixty_scenarios_with_distinct_names() -> None:
    assert len({case["name"] for case in TABLE}) == len(TABLE) >= 60


def test_every_rule_of_the_decision_table_fires_in_some_scenario() -> None:
    fired = {rule for case in TABLE for rule in rules_of(plan_of(case))}
    assert [rule.id for rule in catalog.load().rules if rule.id not in fired] == []


def test_every_line_of_a_plan_names_the_rule_that_put_it_there() -> None:
    plan = plan_of(TABLE[0])
    rules = {rule.id for rule in plan.rules}
    assert {warning.code for warning in plan.warnings} <= rules
    assert all(one.source for one in [*plan.rules, *plan.runner_up, *plan.evaluation])
    assert all(one.rule for one in [*plan.runner_up, *plan.evaluation])


def test_the_plan_of_the_verification_prompt_fits_what_a_tool_may_answer() -> None:
    assert len(json.dumps(plan_of(TABLE[0]).model_dump(mode="json"), ensure_ascii=False, separators=(",", ":"))) < 7_800


def test_averages_take_equal_shares_and_root_of_examples_where_it_is_asked_for() -> None:
    asked = {**TABLE[0]["scenario"], "weighting": "examples"}
    for name in ("linear", "slerp", "nuslerp"):
        assert recommend(read_scenario({**TABLE[0]["scenario"], "strategy": name})).weights == {"persona": 0.5, "tools": 0.5}
        assert recommend(read_scenario({**asked, "strategy": name})).weights == {"persona": 0.39, "tools": 0.61}


def test_elections_take_root_of_examples_until_something_is_measured() -> None:
    measured = {**TABLE[0]["scenario"], "strategy": "ties", "relation": {"cosine": 0.3}}
    assert recommend(read_scenario({**TABLE[0]["scenario"], "strategy": "ties"})).weights == {"persona": 0.39, "tools": 0.61}
    assert recommend(read_scenario(measured)).weights == {"persona": 0.5, "tools": 0.5}
    assert recommend(read_scenario({**measured, "weighting": "examples"})).weights == {"persona": 0.39, "tools": 0.61}


def test_strategies_that_add_deltas_take_every_source_whole_and_a_lambda_below_one() -> None:
    plan = recommend(read_scenario({**TABLE[0]["scenario"], "strategy": "task_arithmetic"}))
    assert plan.weights == {"persona": 1.0, "tools": 1.0}
    assert plan.strategy is not None
    assert plan.strategy.parameters == {"lambda": 0.7}
    assert "weights_whole" in {rule.id for rule in plan.rules}


@pytest.mark.parametrize("norms", [(1.0, 1.0), (1.0, 4.0)])
def test_no_source_of_a_sum_lands_below_what_a_balanced_plan_takes(norms: tuple[float, float]) -> None:
    sources = [
        {"name": n, "kind": "lora", "training_examples": e, "norm": v} for n, e, v in zip("ab", (10, 9000), norms, strict=True)
    ]
    plan = recommend(read_scenario({"sources": sources, "base_model": "m", "strategy": "dare_ties"}))
    assert plan.strategy is not None
    assert {n: w * plan.strategy.parameters["lambda"] for n, w in plan.weights.items()} == {"a": 0.7, "b": 0.7}


@pytest.mark.parametrize(("count", "beside"), [(2, 0.7), (3, 0.53), (8, 0.2)])
def test_a_favoured_source_stays_whole_and_the_others_are_reduced(count: int, beside: float) -> None:
    sources = [{"name": f"s{n}", "kind": "lora"} for n in range(count)]
    plan = recommend(read_scenario({"sources": sources, "base_model": "m", "goal": {"favour": "s1"}}))
    assert plan.strategy is not None
    assert (plan.strategy.id, plan.strategy.parameters) == ("task_arithmetic", {"lambda": 1.0})
    assert plan.weights == {f"s{n}": 1.0 if n == 1 else beside for n in range(count)}


def test_importance_reduces_the_others_but_not_to_nothing() -> None:
    sources = [{"name": n, "kind": "lora", "importance": i} for n, i in (("a", 10), ("b", 9), ("c", 1))]
    plan = recommend(read_scenario({"sources": sources, "base_model": "m", "strategy": "task_arithmetic"}))
    assert plan.weights == {"a": 1.0, "b": 0.9, "c": 0.7}


@pytest.mark.parametrize(("count", "start"), [(1, 1.0), (2, 0.7), (3, 0.53), (4, 0.4), (8, 0.2)])
def test_lambda_starts_lower_as_sources_are_added(count: int, start: float) -> None:
    sources = [{"name": f"s{n}", "kind": "lora"} for n in range(count)]
    plan = recommend(read_scenario({"sources": sources, "base_model": "m", "strategy": "task_arithmetic"}))
    assert plan.strategy is not None
    assert plan.strategy.parameters == {"lambda": start}


def test_the_weights_of_many_sources_still_sum_to_one_after_rounding() -> None:
    sources = [{"name": f"s{n}", "kind": "lora", "training_examples": 10 * n + 7} for n in range(23)]
    plan = recommend(read_scenario({"sources": sources, "base_model": "m", "strategy": "ties"}))
    assert abs(sum(plan.weights.values()) - 1) < 1e-9
    assert min(plan.weights.values()) > 0


def test_slerp_counts_t_from_the_first_source_by_the_second_ones_share() -> None:
    plan = recommend(read_scenario({**TABLE[0]["scenario"], "strategy": "slerp", "weighting": "examples"}))
    assert plan.strategy is not None
    assert plan.strategy.parameters == {"t": 0.61}


def test_a_question_says_which_answer_would_change_what() -> None:
    plan = plan_of(TABLE[0])
    overlap = next(q for q in plan.questions if "training data" in q and "share" in q)
    assert overlap.endswith("(0.4: merge_with_caution; 0.6: retrain_combined)")


def test_a_question_whose_answer_changes_nothing_is_not_asked() -> None:
    known = {
        "data_overlap": 0.1,
        "capabilities": "complementary",
        "similarity": "distinct",
        "redundant_deltas": False,
        "same_base": True,
    }
    constraints = {"compute": "limited", "quality": "tunable", "ram_gib": 12}
    sources = [{"name": n, "kind": "lora", "status": "works", "training_examples": 100} for n in ("a", "b")]
    scenario = {"sources": sources, "base_model": "m", "goal": "balanced", "relation": known, "constraints": constraints}
    assert recommend(read_scenario(scenario)).questions == []


def test_unknown_examples_and_memory_are_asked_for_because_weights_and_engine_follow_them() -> None:
    questions = recommend(read_scenario({"sources": [{"name": "a", "kind": "lora"}, {"name": "b", "kind": "lora"}]})).questions
    assert [q for q in questions if q.startswith("How many examples") or q.startswith("How much memory")] == questions[-2:]


def test_recommend_is_a_pure_function() -> None:
    scenario = read_scenario(TABLE[0]["scenario"])
    assert recommend(scenario) == recommend(scenario)


def test_a_strategy_that_does_not_exist_is_refused_with_the_one_that_was_meant() -> None:
    with pytest.raises(NotFound, match="Did you mean 'dare_ties'"):
        recommend(read_scenario({**TABLE[0]["scenario"], "strategy": "dare-ties"}))


def test_a_saved_plan_reads_back_as_the_same_plan() -> None:
    plan = plan_of(TABLE[0])
    saved = yaml.safe_load(yaml.safe_dump(plan.model_dump(mode="json", exclude_none=True)))
    assert Plan.model_validate(saved) == plan


def test_no_plan_ever_says_safe() -> None:
    for case in TABLE:
        plan = plan_of(case)
        words = " ".join([*(w.message for w in plan.warnings), *(r.because for r in plan.rules)]).lower()
        assert " is safe" not in words
        assert "safe to merge" not in words


def test_the_empty_scenario_is_unknown_not_wrong() -> None:
    assert recommend(Scenario()).decided is False
