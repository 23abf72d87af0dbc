"""Scenario in, plan out: verdict, strategy, weights, engine, what to try next, what to measure, and what to ask.

`look` adds what the files say; the rest is a pure function of that and the rules. Every line of the result names the rule that
put it there.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from mcp_server import catalog
from mcp_server.catalog.models import Catalog, Rule, Strategy
from mcp_server.catalog.signals import Facts, SeenScenario, read_facts
from mcp_server.formats.hub.copies import looking
from mcp_server.schemas.base import Message
from mcp_server.schemas.plan import EngineChoice, EvaluationStep, Plan, RunnerUp, StrategyChoice
from mcp_server.schemas.scenario import Scenario
from mcp_server.steps.estimate import estimate_plan
from mcp_server.steps.recommend.decide import Decision, as_fired, decide, fill, fired, shown
from mcp_server.steps.recommend.known import comparison_for, with_known_cross
from mcp_server.steps.recommend.look import look
from mcp_server.steps.recommend.measure import Figures
from mcp_server.steps.recommend.questions import questions
from mcp_server.steps.recommend.weights import starting_parameters, weights_for
from mcp_server.steps.scenario import read_scenario
from mcp_server.system.machine import GIB

__all__ = ["advise", "comparison_for", "plan_for", "read_scenario", "recommend", "recommend_file"]


@looking()
def recommend(scenario: Scenario, figures: Figures | None = None) -> Plan:
    """The plan for a scenario and for what its files say. Raises `NotFound` when it asks for a strategy that does not exist.

    figures   what `compare` measured on these sources; without it norms and cosines come from factors and samples
    """
    return plan_for(look(scenario, figures))


def advise(scenario: Scenario, compared: Path | None = None) -> Plan:
    """`recommend` with what was measured on this machine: a comparison (or the file `compared`), a cross-context check."""
    scenario = with_known_cross(scenario)
    return recommend(scenario, comparison_for(scenario, compared))


def plan_for(scenario: SeenScenario) -> Plan:
    """The plan for what is said and seen; a pure function."""
    rules = catalog.load()
    if scenario.strategy is not None:
        catalog.strategy(scenario.strategy)
    decision = decide(read_facts(scenario), rules)
    verdict = decision.verdict
    plan = Plan(
        verdict=verdict.verdict or "train_first",
        rules=[as_fired(rule, decision.facts) for rule in (verdict, decision.strategy_rule) if rule],
        questions=questions(decision, rules),
        differences=_differences(decision),
        decided=not any(condition.op == "unknown" for condition in verdict.when),
        observed=scenario.observed if scenario.observed.looked_at else None,
        scenario=Scenario(**{name: getattr(scenario, name) for name in Scenario.model_fields}),
    )
    if decision.strategy:
        plan = _with_strategy(plan, decision, rules)
        plan = plan.model_copy(update={"engine": choose_engine(plan)})
    decision = replace(decision, facts={**decision.facts, **memory_facts(plan.engine)})
    fired_warnings = list(fired(rules, "warning", decision.facts))
    return plan.model_copy(
        update={
            "rules": plan.rules + [as_fired(rule, decision.facts) for rule in fired_warnings],
            "warnings": [Message(code=rule.id, message=fill(rule.warn or "", decision.facts)) for rule in fired_warnings],
        }
    )


def recommend_file(path: Path) -> Plan:
    """Read a scenario file and recommend."""
    return recommend(read_scenario(path))


def _with_strategy(plan: Plan, decision: Decision, rules: Catalog) -> Plan:
    strategy = rules.strategies[decision.strategy or ""]
    weights, why = weights_for(plan.scenario, strategy)
    steps = list(fired(rules, "evaluation", decision.facts))
    following = list(fired(rules, "runner_up", decision.facts))
    return plan.model_copy(
        update={
            "strategy": StrategyChoice(id=strategy.id, parameters=_start(plan.scenario, strategy)),
            "weights": weights,
            "dtype": plan.scenario.dtype,
            "tokenizer": plan.scenario.tokenizer,
            "rules": plan.rules + (why if weights else []),
            "runner_up": [_runner_up(rule, rules, plan.scenario) for rule in following],
            "evaluation": [_step(rule, decision) for rule in steps],
        }
    )


def _start(scenario: Scenario, strategy: Strategy) -> dict[str, Any]:
    weights, _ = weights_for(scenario, strategy)
    return starting_parameters(scenario, strategy, weights)


def _runner_up(rule: Rule, rules: Catalog, scenario: Scenario) -> RunnerUp:
    assert rule.runner_up is not None  # the rule's model guarantees it for this stage
    strategy = rules.strategies[rule.runner_up.strategy]
    start = _start(scenario, strategy)
    return RunnerUp(
        strategy=strategy.id,
        why=" ".join(rule.because.split()),
        parameters={**start, **rule.runner_up.parameters},
        rule=rule.id,
        source=rule.source,
    )


def _step(rule: Rule, decision: Decision) -> EvaluationStep:
    assert rule.evaluate is not None
    because = fill(rule.because, decision.facts)
    return EvaluationStep(suite=rule.evaluate.suite, when=rule.evaluate.when, why=because, rule=rule.id, source=rule.source)


def _differences(decision: Decision) -> list[str]:
    """For `cannot_merge`: the fields that differ, with the values found."""
    if decision.facts["verdict"] != "cannot_merge":
        return []
    found = []
    for field, detail in (("same_architecture", "architectures"), ("same_base", "base_names")):
        if decision.facts[field] is False:
            name = {"same_architecture": "architecture", "same_base": "base_model"}[field]
            found.append(f"{name} ({decision.facts[detail] or 'as you said'})")
    seen = (("misfits", "shape"), ("other_base", "base_model"), ("unrelated", "weights"), ("unusable", "files"))
    found += [f"{name} ({decision.facts[signal]})" for signal, name in seen if decision.facts[signal]]
    if decision.verdict.id == "base_is_not_theirs":
        found.append(f"base_model (task vectors of cosine {shown(decision.facts['cosine'])})")
    return found


def choose_engine(plan: Plan) -> EngineChoice | None:
    """The engine for a plan that merges; None for one that does not."""
    return estimate_plan(plan) if plan.strategy else None


def memory_facts(engine: EngineChoice | None) -> Facts:
    """What the rules may read about memory; unknown where sizes or the budget are."""
    needs = engine.evidence if engine else {}
    evaluate = needs.get("evaluate")
    return {
        "merge_fits": engine.fits if engine else None,
        "verify_fits": needs["verify"].fits if "verify" in needs else None,
        "evaluate_fits": evaluate.fits if evaluate else None,
        "evaluate_gib": evaluate.peak_anon_bytes / GIB if evaluate else None,
    }
