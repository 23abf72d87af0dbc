"""Every wrong call is answered with what was wrong and the nearest right value; the server stays up."""

import pytest
from mcp import Client, MCPError

from mcp_server.server import build_server
from tests.server.conftest import recipe_of, text_of

pytestmark = pytest.mark.anyio


async def refused(call, tool, **arguments):
    result = await call(tool, **arguments)
    assert result.is_error
    return text_of(result)


async def test_a_misspelt_tool_is_answered_with_the_nearest(call):
    assert "Did you mean 'merge_status'" in await refused(call, "merge_statuz")


async def test_an_unknown_argument_is_answered_with_the_nearest(call):
    said = await refused(call, "launch_merge", recipe="x: y", out="out", ram_gb=12)
    assert said == (
        "launch_merge has no argument 'ram_gb'. Did you mean 'ram_gib'?\n→ launch_merge takes recipe, out, engine, "
        "output, output_format, rank, space, ram_gib, seed, threads, shard_size, allow_nonfinite, hash, overwrite, verdict, "
        "proceed_anyway"
    )


async def test_a_missing_argument_is_named(call):
    assert await refused(call, "merge_status") == "job_id: this argument is required"


async def test_a_wrong_type_is_named_with_the_value_found(call):
    assert "wait_seconds: Input should be a valid integer" in await refused(call, "merge_status", job_id="x", wait_seconds="soon")
    assert "found 'soon'" in await refused(call, "merge_status", job_id="x", wait_seconds="soon")


async def test_a_value_outside_its_bounds_is_named_with_the_bound(call):
    said = await refused(call, "merge_status", job_id="x", wait_seconds=99)
    assert said == "wait_seconds: Input should be less than or equal to 50, found 99."


async def test_a_misspelt_choice_is_answered_with_the_nearest(call):
    said = await refused(call, "launch_merge", recipe="x: y", out="out", engine="steam")
    assert "found 'steam'. Did you mean 'stream'?" in said


async def test_a_misspelt_field_deep_in_the_scenario_is_answered_with_the_nearest(call):
    said = await refused(call, "recommend_strategy", scenario={"sources": [{"name": "persona", "trainig_examples": 3}]})
    assert said == "scenario.sources.0.trainig_examples: there is no such field. Did you mean 'training_examples'?"


async def test_a_scenario_that_favours_nobody_known_is_refused(call):
    said = await refused(call, "recommend_strategy", scenario={"sources": [{"name": "persona"}], "goal": {"favour": "persno"}})
    assert "persno" in said and "persona" in said


async def test_a_misspelt_strategy_is_answered_with_the_nearest(call):
    plan = {"verdict": "merge", "strategy": {"id": "tis"}, "scenario": {"sources": [{"name": "a", "ref": "./code"}]}}
    assert "'ties'" in await refused(call, "render_config", plan=plan)


async def test_a_job_that_does_not_exist_is_named_with_what_to_do(call):
    said = await refused(call, "merge_status", job_id="merge-nothing")
    assert "merge-nothing" in said and "→" in said


@pytest.mark.parametrize("path", ["/etc/passwd", "../../../etc", "~/secret"])
async def test_a_path_outside_the_roots_is_refused_with_the_roots(call, path):
    said = await refused(call, "inspect_models", refs=[path])
    assert "outside" in said and "MODEL_MERGING_ROOTS" in said


async def test_a_link_that_leads_out_is_refused(call, workspace):
    (workspace / "innocent").symlink_to("/etc")
    assert "outside" in await refused(call, "inspect_models", refs=["./innocent"])


async def test_a_recipe_that_reads_outside_the_roots_is_refused(call):
    assert "outside" in await refused(call, "validate_config", recipe=recipe_of("code", "../../../etc"))


async def test_a_tokenizer_outside_the_roots_is_refused(call):
    recipe = recipe_of("code", "chat") + "tokenizer: {source: /etc}\n"
    assert "outside" in await refused(call, "launch_merge", recipe=recipe, out="out")


async def test_an_output_outside_the_roots_is_refused(call):
    assert "outside" in await refused(call, "launch_merge", recipe=recipe_of("code", "chat"), out="/var/merged")


async def test_a_recipe_file_that_is_not_there_is_named(call, workspace):
    said = await refused(call, "validate_config", recipe="./recipe.yml")
    assert str(workspace / "recipe.yml") in said


async def test_a_plan_or_a_file_of_one_but_not_both(call):
    assert "found neither" in await refused(call, "render_config")
    assert "found both" in await refused(call, "render_config", plan={}, plan_file="plan.yaml")


async def test_the_server_stays_up_after_all_kinds_of_nonsense(workspace):
    async with Client(build_server()) as client:
        for arguments in (
            {},
            {"refs": []},
            {"refs": [""]},
            {"refs": ["\x00"]},
            {"refs": ["x" * 5_000]},
            {"refs": [{"a": 1}]},
            {"refs": 3},
        ):
            assert (await client.call_tool("inspect_models", arguments)).is_error, arguments
        assert not (await client.call_tool("list_strategies", {})).is_error


async def test_errors_are_bounded_too(call):
    assert len(await refused(call, "inspect_models", refs=["x" * 4_000] * 12)) <= 8_000
    assert len(await refused(call, "recommend_strategy", scenario={f"field{n}": "v" * 500 for n in range(500)})) <= 8_000


async def test_a_resource_that_does_not_exist_is_answered_with_the_nearest(workspace):
    async with Client(build_server()) as client:
        with pytest.raises(MCPError, match="Did you mean 'slerp'"):
            await client.read_resource("merge://strategies/slrp")
        with pytest.raises(MCPError, match="no-such-job"):
            await client.read_resource("merge://jobs/no-such-job")
