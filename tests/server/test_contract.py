"""The tool surface is a contract: a change must show as a diff of the snapshot, and some things may never change unnoticed."""

import pytest

from mcp_server.server.bounds import MAX_CHARACTERS, compact
from mcp_server.server.build import INSTRUCTIONS
from tests.server import contract

READ_ONLY = {
    "inspect_models", "recommend_strategy", "list_strategies", "render_config", "validate_config", "estimate_ram", "merge_status",
    "list_merges", "merge_logs", "diagnose_merge", "list_suites", "list_evaluations",
    "show_replies",
}  # fmt: skip
STARTS_WORK = {
    "ask_models", "compare_models", "launch_merge",
    "merge_adapters", "resume_merge", "verify_merge", "evaluate_merge", "sweep_merges", "write_report",
    "export_merge", "fetch_model", "extract_adapter", "publish_merge",
}  # fmt: skip
DESTRUCTIVE = {"cancel_merge", "launch_merge", "publish_merge"}

pytestmark = pytest.mark.anyio


@pytest.fixture
async def surface(store):
    return await contract.surface()


async def test_the_surface_is_the_committed_one(surface):
    committed = contract.SNAPSHOT.read_text(encoding="utf-8")
    assert contract.as_text(surface) == committed, "if this change is meant: python -m tests.server.contract"


async def test_every_tool_of_the_contract_is_there_and_no_other(surface):
    assert {tool["name"] for tool in surface["tools"]} == READ_ONLY | STARTS_WORK | {"cancel_merge"}


async def test_annotations_say_what_is_read_only_and_what_is_destructive(surface):
    hints = {tool["name"]: tool["annotations"] for tool in surface["tools"]}
    assert {name for name, hint in hints.items() if hint["readOnlyHint"]} == READ_ONLY
    assert {name for name, hint in hints.items() if hint.get("destructiveHint")} == DESTRUCTIVE


async def test_every_tool_and_argument_explains_itself(surface):
    for tool in surface["tools"]:
        assert tool["title"] and 60 <= len(tool["description"]) <= 330, tool["name"]
        assert tool["inputSchema"]["additionalProperties"] is False, tool["name"]
        assert tool["outputSchema"]["type"] == "object", tool["name"]
        for name, argument in tool["inputSchema"]["properties"].items():
            assert argument.get("description"), f"{tool['name']}.{name}"


async def test_numbers_have_bounds(surface):
    for tool in surface["tools"]:
        for name, argument in tool["inputSchema"]["properties"].items():
            for option in argument.get("anyOf", [argument]):
                if option.get("type") in ("integer", "number"):
                    limits = {"minimum", "exclusiveMinimum"} & ({*option} | {*argument})
                    assert limits, f"{tool['name']}.{name} has no lower bound"


async def test_the_list_of_tools_stays_affordable(surface):
    """A client puts names, descriptions and input schemas in front of its model every turn; SmolLM2's tokenizer takes 3.71
    characters of them a token."""
    shown = [{key: tool[key] for key in ("name", "description", "inputSchema")} for tool in surface["tools"]]
    assert sum(len(compact(tool)) for tool in shown) / 3.7 <= 6_000
    assert max(len(compact(tool)) for tool in shown) <= 4_200
    assert len(contract.as_text({"tools": surface["tools"]})) < 135_000


def test_the_instructions_fit_and_name_the_path():
    assert len(INSTRUCTIONS) < 1_500
    path = ["inspect_models", "recommend_strategy", "render_config", "validate_config", "estimate_ram", "launch_merge",
            "merge_status", "verify_merge", "evaluate_merge", "write_report"]  # fmt: skip
    places = [INSTRUCTIONS.index(name) for name in path]
    assert places == sorted(places)
    assert MAX_CHARACTERS == 8_000
