"""Work that is started by one call is watched, read, cancelled and resumed by others, in other servers."""

import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from mcp import Client
from mcp.types import ElicitRequestParams, ElicitResult

from mcp_server.schemas.job import JobStatus
from mcp_server.server import build_server
from mcp_server.server.tools.jobs import described, share_done
from tests import tiny
from tests.server.conftest import data_of, recipe_of, text_of

pytestmark = pytest.mark.anyio
QUICK = [{"do": "progress", "done": 2, "total": 2}]
BLOCKED = [{"do": "say", "text": "here I stand"}, {"do": "block"}]


def earlier_merge(workspace: Path) -> None:
    """An output that may be replaced: a merge of ours."""
    (workspace / "merged").mkdir()
    for name, text in {**tiny.MERGE, "evaluation.json": "{}"}.items():
        (workspace / "merged" / name).write_text(text, encoding="utf-8")


async def launched(call, *, script=QUICK, **more):
    recipe = recipe_of("code", "chat", script=script)
    return data_of(await call("launch_merge", **{"recipe": recipe, "out": "./merged", "engine": "mergekit", **more}))


async def test_a_merge_started_by_one_server_is_finished_for_another(call, workspace):
    started = await launched(call, seed=5)
    assert started["kind"] == "merge" and started["output"] == str(workspace / "merged")
    ended = data_of(await call("merge_status", job_id=started["job_id"], wait_seconds=30))
    assert (ended["state"], ended["result"]["seed"]) == ("succeeded", 5)
    listed = data_of(await call("list_merges"))
    assert [(job["job_id"], job["result"]) for job in listed["jobs"]] == [(started["job_id"], None)]


async def test_the_space_of_an_adapter_reaches_the_merge(call):
    recipe = "merge_method: ties\nbase_model: base\nmodels: [{model: base+persona, parameters: {weight: 1}}]\n"
    asked = {"recipe": recipe, "out": "./small", "rank": 2, "space": "core"}
    assert "--space core is for adapters" in text_of(await call("launch_merge", **asked))
    started = data_of(await call("launch_merge", **asked, output="adapter"))
    request = json.loads(Path(started["log_path"]).with_name("request.json").read_text(encoding="utf-8"))
    assert (request["parameters"]["output"], request["parameters"]["space"]) == ("adapter", "core")


async def test_waiting_reports_progress_that_only_rises(call, workspace):
    seen = []

    async def note(done, total, message):
        seen.append((done, total, message))

    job_id = (await launched(call, script=BLOCKED))["job_id"]
    async with Client(build_server()) as client:
        result = await client.call_tool("merge_status", {"job_id": job_id, "wait_seconds": 1}, progress_callback=note)
    assert data_of(result)["state"] in ("queued", "running")
    assert [done for done, _, _ in seen] == sorted({done for done, _, _ in seen})
    assert all(total == 1 and message.startswith("merge ") for _, total, message in seen)


async def test_a_job_is_cancelled_and_its_partial_output_removed(call, workspace):
    job_id = (await launched(call, script=BLOCKED))["job_id"]
    assert data_of(await call("cancel_merge", job_id=job_id))["state"] == "cancelled"
    assert data_of(await call("cancel_merge", job_id=job_id))["state"] == "cancelled"
    assert sorted(p.name for p in workspace.iterdir()) == ["base", "chat", "code", "persona"]


async def test_a_log_is_read_in_pages(call):
    script = [{"do": "say", "text": f"{'line':>60}", "times": 300}]
    job_id = (await launched(call, script=script))["job_id"]
    data_of(await call("merge_status", job_id=job_id, wait_seconds=30))
    page, text, pages = data_of(await call("merge_logs", job_id=job_id)), "", 0
    while page["next_offset"] is not None and page["text"]:
        text, pages = text + page["text"], pages + 1
        page = data_of(await call("merge_logs", job_id=job_id, offset=page["next_offset"]))
    text += page["text"]
    assert text.count("line") == 300 and pages >= 2


async def test_a_failed_job_says_why_and_what_to_do(call):
    job_id = (await launched(call, script=[{"do": "fail", "message": "the disk is on fire"}]))["job_id"]
    ended = data_of(await call("merge_status", job_id=job_id, wait_seconds=30))
    assert (ended["state"], ended["error"]["message"]) == ("failed", "the disk is on fire")
    assert ended["next_step"]


async def test_an_existing_output_is_not_replaced_unasked(call, workspace):
    (workspace / "merged").mkdir()
    (workspace / "merged" / "precious.txt").write_text("mine", encoding="utf-8")
    result = await call("launch_merge", recipe=recipe_of("code", "chat"), out="./merged")
    assert result.is_error and "is not replaced" in text_of(result)
    assert (workspace / "merged" / "precious.txt").read_text(encoding="utf-8") == "mine"
    assert data_of(await call("list_merges"))["total"] == 0


async def test_a_folder_that_holds_no_model_is_never_replaced(call, workspace):
    (workspace / "photos").mkdir()
    (workspace / "photos" / "me.jpg").write_text("mine", encoding="utf-8")
    result = await call("launch_merge", recipe=recipe_of("code", "chat"), out="./photos", overwrite=True)
    assert result.is_error and "holds no merge_provenance.json of ours" in text_of(result)
    assert (workspace / "photos" / "me.jpg").is_file()


async def test_overwrite_says_yes_beforehand(call, workspace):
    earlier_merge(workspace)
    started = await launched(call, overwrite=True)
    assert data_of(await call("merge_status", job_id=started["job_id"], wait_seconds=30))["state"] == "succeeded"
    assert not (workspace / "merged" / "evaluation.json").exists()


async def test_a_merge_that_the_recommendation_opposes_is_not_started_unasked(call):
    result = await call("launch_merge", recipe=recipe_of("code", "chat"), out="./merged", verdict="retrain_combined")
    assert result.is_error and "'retrain_combined'" in text_of(result) and "proceed_anyway=true" in text_of(result)
    assert (await launched(call, verdict="retrain_combined", proceed_anyway=True))["state"] in ("queued", "running")


@pytest.mark.parametrize("mode", ["legacy", "auto"])
@pytest.mark.parametrize("answer", [True, False, None])
async def test_a_client_that_can_ask_its_user_asks_once_and_obeys(workspace, mode, answer):
    earlier_merge(workspace)
    questions = []

    async def ask(context, params: ElicitRequestParams) -> ElicitResult:
        questions.append(params.message)
        return ElicitResult(action="decline") if answer is None else ElicitResult(action="accept", content={"go_on": answer})

    arguments = {"recipe": recipe_of("code", "chat", script=QUICK), "out": "./merged", "engine": "mergekit", "verdict": "route"}
    async with Client(build_server(), mode=mode, elicitation_callback=ask) as client:
        result = await client.call_tool("launch_merge", arguments)
    assert len(questions) == 1
    assert "exists already" in questions[0] and "'route'" in questions[0]
    assert result.is_error is (answer is not True)


async def test_nothing_is_asked_when_nothing_stands_against_it(workspace):
    async def ask(context, params: ElicitRequestParams) -> ElicitResult:
        raise AssertionError("asked for no reason")

    arguments = {"recipe": recipe_of("code", "chat", script=QUICK), "out": "./merged", "engine": "mergekit", "verdict": "merge"}
    async with Client(build_server(), elicitation_callback=ask) as client:
        assert not (await client.call_tool("launch_merge", arguments)).is_error


@pytest.mark.parametrize("tool", ["verify_merge", "evaluate_merge"])
async def test_evidence_is_gathered_in_the_background(call, workspace, tool):
    started = data_of(await call(tool, out="./code"))
    assert (started["kind"], started["state"] in ("queued", "running", "succeeded")) == (tool.split("_")[0], True)


async def test_sources_can_be_measured_before_there_is_a_merge(call, workspace):
    started = data_of(await call("evaluate_merge", against={"base": "./base", "code": "./code"}, cross=True))
    assert started["kind"] == "evaluate"
    nothing = await call("evaluate_merge")
    assert nothing.is_error and "neither `out` nor `against` was given" in text_of(nothing)


async def test_compare_starts_a_job_with_resolved_sources(call, workspace):
    started = data_of(await call("compare_models", base="./base", refs=["./code", "./chat"]))
    assert started["kind"] == "compare"


async def test_evidence_of_a_folder_that_is_not_there_is_refused(call, workspace):
    result = await call("verify_merge", out="./nowhere")
    assert result.is_error and str(workspace / "nowhere") in text_of(result)


async def test_a_job_is_a_resource_too(call, workspace):
    job_id = (await launched(call))["job_id"]
    async with Client(build_server()) as client:
        read = await client.read_resource(f"merge://jobs/{job_id}")
    assert f'"job_id":"{job_id}"' in read.contents[0].text


async def test_one_call_prepares_asks_and_starts_a_merge(call, workspace):
    asked = data_of(await call("merge_adapters", refs=["./code", "./chat"], out="./once", base="./base"))
    assert (asked["job"], bool(asked["prepared"]["questions"])) == (None, True)
    assert not (workspace / "once").exists()
    started = data_of(await call("merge_adapters", refs=["./code", "./chat"], out="./once", base="./base", go_on=True))
    ended = data_of(await call("merge_status", job_id=started["job"]["job_id"], wait_seconds=50))
    assert (ended["state"], ended["about"]) == ("succeeded", "task_arithmetic of code, chat"), ended["error"]
    assert (workspace / "once" / "plan.yaml").is_file()


async def test_an_adapter_extracted_by_tool_is_the_command_lines(call, workspace):
    started = data_of(await call("extract_adapter", base="./base", finetune="./code", out="./by-tool", rank=2))
    ended = data_of(await call("merge_status", job_id=started["job_id"], wait_seconds=50))
    assert (ended["state"], ended["result"]["relative_error"] is not None) == ("succeeded", True)
    command = [sys.executable, "-m", "mcp_server.cli", "extract", "base", "code", "by-shell", "--rank", "2"]
    subprocess.run(command, check=True, cwd=workspace, capture_output=True)
    adapters = [(workspace / folder / "adapter_model.safetensors").read_bytes() for folder in ("by-tool", "by-shell")]
    assert adapters[0] == adapters[1]


def test_a_job_that_says_how_long_it_still_takes_tells_its_share():
    began = (datetime.now(UTC) - timedelta(seconds=30)).isoformat()
    fields = {"job_id": "j", "kind": "evaluate", "state": "running", "created": began, "started": began, "log_path": ""}
    running = JobStatus.model_validate(fields | {"progress": {"stage": "base", "done": 1, "total": 4, "left_seconds": 90}})
    assert share_done(running) == pytest.approx(0.25, abs=0.01)
    assert described(running) == "evaluate running: base 1/4, 90 s left"
    assert share_done(JobStatus.model_validate(fields)) is None
