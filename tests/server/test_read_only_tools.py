"""What each read-only tool answers on real tiny checkpoints, and that none of them writes."""

from pathlib import Path

import anyio
import pytest
from mcp import Client

from mcp_server.schemas.plan import Plan
from mcp_server.server import build_server
from mcp_server.steps.handles import kept_plan
from mcp_server.steps.report.gather import gather
from tests.engine.synthetic import run
from tests.server.conftest import data_of, recipe_of, text_of
from tests.server.test_contract import READ_ONLY

pytestmark = pytest.mark.anyio


def scenario(workspace: Path) -> dict:
    sources = [
        {"name": "code", "ref": "./code", "kind": "full", "training_examples": 200, "status": "works"},
        {"name": "chat", "ref": "./chat", "kind": "full", "training_examples": 500, "status": "works"},
    ]
    relation = {"data_overlap": 0.1, "capabilities": "complementary", "same_base": True}
    return {"sources": sources, "base_model": "./base", "relation": relation, "constraints": {"ram_gib": 12}}


async def test_inspect_names_the_sources_and_says_that_they_fit(call, workspace):
    found = data_of(await call("inspect_models", refs=["./code", "./chat"], base="./base"))
    assert found["compatible"] is True
    assert {Path(s["path"]).name for s in found["sources"]} >= {"code", "chat"}


async def test_the_path_from_scenario_to_a_valid_recipe_and_its_cost(call, workspace):
    plan = data_of(await call("recommend_strategy", scenario=scenario(workspace)))
    assert plan["verdict"] == "merge"
    assert {name: round(weight, 2) for name, weight in plan["weights"].items()}.keys() == {"code", "chat"}
    rendered = data_of(await call("render_config", plan=plan))
    assert str(workspace / "code") in rendered["recipe"]
    assert data_of(await call("validate_config", recipe=rendered["recipe"]))["ok"] is True
    assert data_of(await call("estimate_ram", recipe=rendered["recipe"], ram_gib=12))["engines"]["mergekit"]["fits"] is True


async def test_the_cost_of_an_adapter_output(call, workspace):
    recipe = "merge_method: linear\nmodels: [{model: base+persona, parameters: {weight: 1}}]\n"
    engines = data_of(await call("estimate_ram", recipe=recipe, ram_gib=1, output="adapter"))["engines"]
    assert (list(engines), engines["stream"]["fits"]) == (["stream"], True)


async def test_the_space_of_an_adapter_and_the_form_of_a_model_are_judged_before_the_merge(call, workspace):
    ties = "merge_method: ties\nbase_model: base\nmodels: [{model: base+persona, parameters: {weight: 1}}]\n"
    made = {"output": "adapter", "rank": 2, "ram_gib": 1}
    costs = [data_of(await call("estimate_ram", recipe=ties, **made, space=space)) for space in ("weights", "core")]
    assert ["cores_of_factors" in cost["engines"]["stream"]["breakdown"] for cost in costs] == [False, True]
    assert "--space core is for adapters" in text_of(await call("estimate_ram", recipe=ties, space="core"))
    for fix in (False, True):
        found = data_of(await call("validate_config", recipe=ties, output_format="fp8", fix=fix))
        assert (found["ok"], [one["code"] for one in found["findings"] if one["severity"] == "error"]) == (False, ["MM505"])


async def test_a_plan_is_kept_whole_under_the_id_that_the_agent_gets(call, workspace):
    plan = Plan.model_validate(data_of(await call("recommend_strategy", scenario=scenario(workspace))))
    assert plan.plan_id is not None
    kept = kept_plan(plan.plan_id)
    assert kept.scenario.base_model == str(workspace / "base")
    assert (kept.verdict, kept.strategy, kept.weights) == (plan.verdict, plan.strategy, plan.weights)


async def test_plan_and_recipe_go_by_id_from_advice_to_the_model_and_its_report(call, workspace):
    plan_id = data_of(await call("recommend_strategy", scenario=scenario(workspace)))["plan_id"]
    rendered = data_of(await call("render_config", plan=plan_id, overrides={"strategy": "linear"}))
    recipe_id = rendered["recipe_id"]
    assert f"# plan: {plan_id}" in rendered["recipe"]
    assert data_of(await call("validate_config", recipe=recipe_id))["ok"] is True
    assert "stream" in data_of(await call("estimate_ram", recipe=plan_id))["engines"]
    job = data_of(await call("launch_merge", recipe=recipe_id, out="./merged"))
    ended = data_of(await call("merge_status", job_id=job["job_id"], wait_seconds=50))
    assert (ended["state"], ended["about"]) == ("succeeded", "linear of code, chat"), ended["error"]
    assert data_of(await call("list_merges"))["jobs"][0]["about"] == "linear of code, chat"
    assert gather(workspace / "merged").plan == kept_plan(plan_id)


@pytest.mark.parametrize("tool", ["render_config", "validate_config"])
async def test_an_id_that_nobody_kept_is_refused_by_name(call, tool):
    given = {"render_config": {"plan": "plan-0123456789ab"}, "validate_config": {"recipe": "recipe-0123456789ab"}}[tool]
    assert next(iter(given.values())) in text_of(await call(tool, **given))


async def test_advice_fits_what_an_agent_can_read_at_once(call, workspace):
    result = await call("recommend_strategy", scenario=scenario(workspace))
    assert len(text_of(result)) / 4 < 1_500


async def test_overrides_change_the_recipe(call, workspace):
    plan = data_of(await call("recommend_strategy", scenario=scenario(workspace)))
    rendered = data_of(await call("render_config", plan=plan, overrides={"strategy": "linear"}))
    assert rendered["strategy"] == "linear"


async def test_a_recipe_is_taken_as_text_or_as_a_file(call, workspace):
    (workspace / "recipe.yml").write_text(recipe_of("code", "chat"), encoding="utf-8")
    as_file = await call("validate_config", recipe="./recipe.yml")
    assert data_of(as_file) == data_of(await call("validate_config", recipe=recipe_of("code", "chat")))


async def test_fix_returns_the_corrected_recipe(call):
    broken = recipe_of("code", "chat").replace("merge_method: linear", "merge_method: lienar")
    assert data_of(await call("validate_config", recipe=broken))["ok"] is False


async def test_strategies_come_in_pages_that_add_up(call):
    first = data_of(await call("list_strategies", limit=4))
    names = [s["id"] for s in first["strategies"]]
    while first["next_offset"] is not None:
        first = data_of(await call("list_strategies", limit=4, offset=first["next_offset"]))
        names += [s["id"] for s in first["strategies"]]
    assert len(names) == len(set(names)) == first["total"] >= 8
    assert names == sorted(names)


async def test_results_come_as_text_and_as_data_that_agree(call):
    import json

    result = await call("list_strategies", limit=3)
    assert json.loads(text_of(result)) == result.structured_content


async def test_no_read_only_tool_writes_a_file(workspace, store):
    before = sorted(p for p in workspace.rglob("*"))
    arguments = {
        "inspect_models": {"refs": ["./code"]},
        "recommend_strategy": {"scenario": scenario(workspace)},
        "list_strategies": {},
        "render_config": {"plan": {"verdict": "merge"}},
        "validate_config": {"recipe": recipe_of("code", "chat"), "fix": True},
        "estimate_ram": {"recipe": recipe_of("code", "chat")},
        "merge_status": {"job_id": "x"},
        "list_merges": {},
        "merge_logs": {"job_id": "x"},
        "diagnose_merge": {"out": "./code"},
        "list_suites": {},
        "list_evaluations": {"out": "./code"},
        "show_replies": {"out": "./code"},
    }
    assert arguments.keys() == READ_ONLY
    async with Client(build_server()) as client:
        for tool, given in arguments.items():
            await client.call_tool(tool, given)
    assert sorted(p for p in workspace.rglob("*")) == before
    kept = {p.parent.name for p in store.rglob("*") if p.is_file()}
    assert kept == {"plans", "hashes"}, "plans under their ids and remembered file hashes, nothing else"


async def test_fifty_calls_at_once_are_each_answered_with_their_own_result(workspace):
    answers = {}

    async def ask(client: Client, offset: int) -> None:
        result = await client.call_tool("list_strategies", {"offset": offset % 10, "limit": 1})
        answers[offset] = data_of(result)["strategies"][0]["id"]

    async with Client(build_server()) as client:
        everything = [s["id"] for s in data_of(await client.call_tool("list_strategies", {"limit": 50}))["strategies"]]
        async with anyio.create_task_group() as group:
            for offset in range(50):
                group.start_soon(ask, client, offset)
    assert answers == {offset: everything[offset % 10] for offset in range(50)}


async def test_diagnose_and_its_prompt_name_the_same_cause(call, workspace):
    run(recipe_of("code", "chat"), workspace / "merged")
    assert data_of(await call("diagnose_merge", out="./merged"))["ok"] is True
    weights = workspace / "merged" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    found = data_of(await call("diagnose_merge", out="./merged"))
    assert (found["ok"], [one["code"] for one in found["findings"]]) == (False, ["damaged_file"])
    async with Client(build_server()) as client:
        prompt = await client.get_prompt("diagnose_merge", {"job_id": "./merged"})
    assert "- damaged_file: " in prompt.messages[0].content.text
