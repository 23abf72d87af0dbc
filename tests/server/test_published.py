"""The schemas that clients see are smaller than the ones that calls are checked with, and say the same."""

from __future__ import annotations

from typing import Any

import jsonschema
import pytest

from mcp_server.schemas.scenario import Constraints, Relation, Scenario, ScenarioSource
from mcp_server.server.published import input_schema
from mcp_server.server.tools import all_tools

TOOLS = {tool.name: tool for tool in all_tools()}
CALLS: list[tuple[str, dict[str, Any]]] = [
    ("inspect_models", {"refs": ["./persona", "./tools"], "base": "demo:smollm2-135m-instruct"}),
    ("recommend_strategy", {"scenario": {"sources": [{"ref": "./a", "layer_range": [0, 4]}], "goal": {"favour": "a"}}}),
    ("recommend_strategy", {"scenario": {"relations": [{"between": ["a", "b"], "data_overlap": 0.1}], "goal": "balanced"}}),
    ("render_config", {"plan": "plan-0123456789ab", "overrides": {"sources.persona.weight": 0.7}}),
    ("estimate_ram", {"recipe": "recipe-0123456789ab", "ram_gib": 12, "output": "adapter", "rank": 16}),
    ("sweep_merges", {"out": "./s", "plan": "plan-0123456789ab", "grid": {"parameters.lambda": [0.5, 1], "strategy": ["ties"]}}),
    ("evaluate_merge", {"out": "./m", "suites": ["perplexity"], "against": {"base": "./b"}, "limit": 8, "split": "dev"}),
]


@pytest.mark.parametrize("name", TOOLS)
def test_every_argument_is_published_and_the_same_ones_are_required(name: str) -> None:
    whole, shown = TOOLS[name].fn_metadata.arg_model.model_json_schema(by_alias=True), TOOLS[name].parameters
    assert set(shown["properties"]) == set(whole.get("properties", {}))
    assert set(shown.get("required", [])) == set(whole.get("required", []))
    assert shown["additionalProperties"] is False
    jsonschema.Draft202012Validator.check_schema(shown)


@pytest.mark.parametrize(("name", "arguments"), CALLS)
def test_what_the_server_takes_is_valid_for_the_client(name: str, arguments: dict[str, Any]) -> None:
    TOOLS[name].fn_metadata.validate_arguments(arguments)
    jsonschema.validate(arguments, TOOLS[name].parameters)


def test_a_scenario_is_published_with_all_its_fields() -> None:
    scenario = TOOLS["recommend_strategy"].parameters["properties"]["scenario"]["properties"]
    assert set(scenario) == set(Scenario.model_fields)
    assert set(scenario["sources"]["items"]["properties"]) == set(ScenarioSource.model_fields)
    assert set(scenario["constraints"]["properties"]) == set(Constraints.model_fields)
    assert set(scenario["relation"]["properties"]) == set(Relation.model_fields)
    assert scenario["relations"]["items"]["properties"].keys() == {"between"}
    assert "fields of relation" in scenario["relations"]["items"]["description"]


def test_wrong_values_stay_wrong() -> None:
    shown = TOOLS["recommend_strategy"].parameters
    for scenario in ({"goal": "best"}, {"sources": [{"training_examples": -1}]}, {"constraints": {"ram_gib": 0}}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({"scenario": scenario}, shown)


def test_definitions_used_twice_stay_and_those_used_once_move() -> None:
    one, two = {"type": "object", "properties": {"x": {"type": "integer"}}}, {"type": "string", "enum": ["a"]}
    shown = input_schema(
        {
            "type": "object",
            "$defs": {"One": one, "Two": two},
            "properties": {"a": {"$ref": "#/$defs/One"}, "b": {"$ref": "#/$defs/Two"}, "c": {"$ref": "#/$defs/Two"}},
        }
    )
    assert shown == {
        "$defs": {"Two": two},
        "type": "object",
        "properties": {"a": one, "b": {"$ref": "#/$defs/Two"}, "c": {"$ref": "#/$defs/Two"}},
        "additionalProperties": False,
    }
