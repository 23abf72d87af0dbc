"""The plan that examples in documents and golden files are rendered from: two adapters of one base, 200 and 500 examples."""

from __future__ import annotations

from typing import Final

from mcp_server.catalog.models import Strategy
from mcp_server.schemas.plan import Plan, StrategyChoice
from mcp_server.schemas.scenario import Scenario, ScenarioSource
from mcp_server.steps.recommend.weights import starting_parameters, weights_for

EXAMPLE: Final = Scenario(
    sources=[
        ScenarioSource(name="persona", ref="/models/persona", kind="lora", capability="casual voice", training_examples=200),
        ScenarioSource(name="tools", ref="/models/tools", kind="lora", capability="strict JSON", training_examples=500),
    ],
    base_model="/models/base",
    layers=32,
)


def example_plan(strategy: Strategy) -> Plan:
    """The example's plan for one strategy, cut to as many sources as it takes."""
    wanted = strategy.inputs.max or 2
    scenario = EXAMPLE.model_copy(update={"sources": (EXAMPLE.sources or [])[:wanted]})
    weights, _ = weights_for(scenario, strategy)
    parameters = starting_parameters(scenario, strategy, weights)
    return Plan(
        verdict="merge",
        strategy=StrategyChoice(id=strategy.id, parameters=parameters),
        weights=weights,
        dtype="bfloat16",
        scenario=scenario,
    )
