"""The whole tasks can be finished with the tools alone, as SKILL.md lays them out: real workers, judged by the checker.

Each solution makes only moves that the skill names, and takes what it writes into answer.md from the tools' answers.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from mcp import Client
from mcp.types import TextContent

from mcp_server.server import build_server
from tests.skill.test_checker import checker, fixtures

pytestmark = [pytest.mark.anyio, pytest.mark.slow]
Call = Callable[..., Awaitable[dict[str, Any]]]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def workspace(request, tmp_path, store, monkeypatch) -> Path:
    folder = tmp_path / "task"
    fixtures.prepare(request.param, folder)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return folder


@pytest.fixture
async def call(workspace):
    async with Client(build_server(), read_timeout_seconds=120) as client:

        async def made(tool: str, **arguments: Any) -> dict[str, Any]:
            result = await client.call_tool(tool, arguments)
            first = result.content[0]
            assert not result.is_error, first.text if isinstance(first, TextContent) else first
            return dict(result.structured_content or {})

        yield made


def judged(task: str, workspace: Path) -> list[str]:
    return [f"{name} ({detail})" for name, holds, detail in checker.TASKS[task](workspace) if not holds]


async def finished(call: Call, job: dict[str, Any]) -> dict[str, Any]:
    for _ in range(6):
        job = await call("merge_status", job_id=job["job_id"], wait_seconds=50)
        if job["state"] not in ("queued", "running"):
            break
    assert job["state"] == "succeeded", (job["state"], job["error"])
    return job


async def verified(call: Call, out: str) -> str:
    job = await finished(call, await call("verify_merge", out=out))
    return str(job["result"]["verdict"])


def task(name: str):
    return pytest.mark.parametrize("workspace", [name], indirect=True)


def adapters(*names: str, **examples: int) -> list[dict[str, Any]]:
    return [
        {"name": n, "ref": f"./{n}", "kind": "lora", "status": "works", "training_examples": examples.get(n, 100)} for n in names
    ]


@task("two-adapters")
async def test_two_adapters(call, workspace):
    inspection = await call("inspect_models", refs=["./persona", "./tools"], base="./base")
    assert inspection["compatible"] is True
    scenario = {
        "sources": adapters("persona", "tools", persona=200, tools=500),
        "base_model": "./base",
        "relation": {"data_overlap": 0.0, "capabilities": "complementary", "same_base": True},
        "constraints": {"ram_gib": 12},
    }
    plan = await call("recommend_strategy", scenario=scenario)
    recipe = (await call("render_config", plan=plan))["recipe"]
    assert (await call("validate_config", recipe=recipe))["ok"] is True
    assert (await call("estimate_ram", recipe=recipe, ram_gib=12))["engines"]["stream"]["fits"] is True
    await finished(call, await call("launch_merge", recipe=recipe, out="./merged", seed=1, verdict=plan["verdict"]))
    assert await verified(call, "./merged") == "verified"
    (workspace / "recipe.yml").write_text(recipe, encoding="utf-8")
    reasons = "\n".join(f"- {rule['because']}" for rule in plan["rules"])
    hashes = ", ".join(f"{Path(s['ref']).name} {s['architecture_hash']}" for s in inspection["sources"])
    (workspace / "answer.md").write_text(f"Sources: {hashes}\n{plan['strategy']['id']} because\n{reasons}\n", encoding="utf-8")
    assert judged("two-adapters", workspace) == []


@task("retrain-instead")
async def test_retrain_instead(call, workspace):
    scenario = {
        "sources": adapters("verbose", "concise"),
        "base_model": "./base",
        "relation": {"data_overlap": 0.7, "capabilities": "conflicting", "same_base": True},
    }
    plan = await call("recommend_strategy", scenario=scenario)
    assert plan["verdict"] == "retrain_combined"
    reasons = "; ".join(rule["because"] for rule in plan["rules"])
    (workspace / "answer.md").write_text(f"Retrain one adapter on both sets: {reasons}", encoding="utf-8")
    assert judged("retrain-instead", workspace) == []


@task("broken-recipe")
async def test_broken_recipe(call, workspace):
    found = await call("validate_config", recipe="./recipe.yml")
    assert found["ok"] is False
    said = "\n".join(f"- {f['code']} {f['where']}: {f['message']} → {f['fix']}" for f in found["findings"])
    broken = yaml.safe_load((workspace / "recipe.yml").read_text(encoding="utf-8"))
    weights = {s["model"]: s["parameters"]["weight"] for s in broken["slices"][0]["sources"]}
    models = [{"model": m, "parameters": {"weight": w, "density": 0.5}} for m, w in weights.items()]
    fixed = {"merge_method": "ties", "base_model": "./base", "models": models, "dtype": broken["dtype"]}
    (workspace / "recipe.yml").write_text(yaml.safe_dump(fixed, sort_keys=False), encoding="utf-8")
    assert (await call("validate_config", recipe="./recipe.yml"))["ok"] is True
    text = f"What the linter found:\n{said}\nChanged: base_model added, density 1.5 to 0.5, layer ranges dropped for models:\n"
    (workspace / "answer.md").write_text(text, encoding="utf-8")
    for word in ("density", "layer_range", "base"):
        assert word in said, f"the linter never named {word}"
    assert judged("broken-recipe", workspace) == []


@task("does-not-match")
async def test_does_not_match(call, workspace):
    found = await call("inspect_models", refs=["./small", "./wide"])
    assert found["compatible"] is False
    lines = [f"- {d['field']}: {d['values']} ({d['meaning']}) {d['why']}" for d in found["differences"]]
    (workspace / "answer.md").write_text("These cannot be merged:\n" + "\n".join(lines), encoding="utf-8")
    assert judged("does-not-match", workspace) == []


@task("adapter-space")
async def test_adapter_space(call, workspace):
    entries = [{"model": f"./base+./{name}", "parameters": {"weight": 0.7}} for name in ("persona", "tools")]
    recipe = yaml.safe_dump({"merge_method": "task_arithmetic", "base_model": "./base", "models": entries, "dtype": "float32"})
    await finished(call, await call("launch_merge", recipe=recipe, out="./combined", output="adapter"))
    assert judged("adapter-space", workspace) == []


@task("pick-up-the-job")
async def test_pick_up_the_job(call, workspace):
    entries = [{"model": f"./{name}", "parameters": {"weight": 1.0}} for name in ("code", "chat")]
    shared = {"lambda": 0.5}
    recipe = yaml.safe_dump({"merge_method": "task_arithmetic", "base_model": "./base", "models": entries, "parameters": shared})
    started = await call("launch_merge", recipe=recipe, out="./merged")
    listed = await call("list_merges", kind="merge")
    assert [job["job_id"] for job in listed["jobs"]] == [started["job_id"]]
    await finished(call, listed["jobs"][0])
    verdict = await verified(call, "./merged")
    text = f"Verification: {verdict}. Not finished: evaluate base, code, chat and the merge on held-out prompts.\n"
    (workspace / "answer.md").write_text(text, encoding="utf-8")
    assert judged("pick-up-the-job", workspace) == []


@task("another-base")
async def test_another_base(call, workspace):
    found = await call("inspect_models", refs=["./persona", "./tools"], base="./base")
    assert found["compatible"] is False
    plan = await call("recommend_strategy", scenario={"sources": adapters("persona", "tools"), "base_model": "./base"})
    assert plan["verdict"] == "cannot_merge"
    lines = [f"- {d['field']}: {d['values']} ({d['meaning']}) {d['why']}" for d in found["differences"]]
    (workspace / "answer.md").write_text("\n".join([*lines, *plan["differences"]]), encoding="utf-8")
    assert judged("another-base", workspace) == []


@task("blog-recipe")
async def test_blog_recipe(call, workspace):
    found = await call("validate_config", recipe="./blog.yml")
    assert found["ok"] is False
    said = "\n".join(f"- {f['code']} {f['where']}: {f['message']} → {f['fix']}" for f in found["findings"])
    blog = yaml.safe_load((workspace / "blog.yml").read_text(encoding="utf-8"))
    meant = {
        "merge_method": "task_arithmetic",
        "base_model": blog["base"],
        "models": [{"model": m["model"], "parameters": {"weight": m["weight"]}} for m in blog["models"]],
        "parameters": {"lambda": blog["parameters"]["scaling"]},
        "dtype": "bfloat16",
    }
    (workspace / "recipe.yml").write_text(yaml.safe_dump(meant, sort_keys=False), encoding="utf-8")
    assert (await call("validate_config", recipe="./recipe.yml"))["ok"] is True
    changed = "Written instead: merge_method, base_model, weights under parameters, lambda for scaling, dtype bfloat16."
    (workspace / "answer.md").write_text(f"{said}\n{changed}\n", encoding="utf-8")
    assert judged("blog-recipe", workspace) == []


@task("gibberish")
async def test_gibberish(call, workspace):
    (workspace / "merged" / "mergekit_config.yml").write_text(
        (workspace / "recipe.yml").read_text(encoding="utf-8").replace("./", f"{workspace}/"), encoding="utf-8"
    )
    found = await call("diagnose_merge", out="./merged")
    assert "wrong_base" in {cause["code"] for cause in found["findings"]}
    said = "\n".join(f"- {cause['cause']}: {cause['evidence']}" for cause in found["findings"])
    sound = (workspace / "recipe.yml").read_text(encoding="utf-8").replace("./other", "./base").replace("0.7", "1.0")
    assert (await call("validate_config", recipe=sound))["ok"] is True
    await finished(call, await call("launch_merge", recipe=sound, out="./fixed"))
    assert await verified(call, "./fixed") == "verified"
    text = f"{said}\nother/ is not the base that code/ and chat/ were trained from; fixed/ stands on base/.\n"
    (workspace / "answer.md").write_text(text, encoding="utf-8")
    assert judged("gibberish", workspace) == []


@task("own-data")
async def test_own_data(call, workspace):
    rows = [line.split(",") for line in (workspace / "tickets.csv").read_text(encoding="utf-8").splitlines()[1:]]
    lines = [json.dumps({"prompt": q, "expected": answer, "match": kind}) for q, answer, kind in rows]
    (workspace / "prompts.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    await finished(call, await call("launch_merge", recipe=halves(), out="./merged"))
    found = await finished(call, await call("evaluate_merge", out="./merged", data=["./prompts.jsonl"], suites=[]))
    assert found["result"]["verdict"] != "accepted"
    text = (
        "evaluate_merge(out='./merged', data=['./prompts.jsonl']) [model-merging evaluate merged --data prompts.jsonl] asked "
        f"base, code, chat and merged the 12 prompts: {found['result']['verdict']}. Twelve are too few: the interval is far "
        "wider than 5 %.\n"
    )
    (workspace / "answer.md").write_text(text, encoding="utf-8")
    assert judged("own-data", workspace) == []


def halves() -> str:
    entries = [{"model": f"./{name}", "parameters": {"weight": 0.5}} for name in ("code", "chat")]
    return yaml.safe_dump({"merge_method": "task_arithmetic", "base_model": "./base", "models": entries, "dtype": "float32"})


@task("favour-one")
async def test_favour_one(call, workspace):
    sources = [{"name": n, "ref": f"./{n}", "kind": "full", "status": "works"} for n in ("code", "chat")]
    scenario = {
        "sources": sources,
        "base_model": "./base",
        "relation": {"capabilities": "complementary", "same_base": True, "data_overlap": 0.1},
        "goal": {"favour": "code"},
    }
    plan = await call("recommend_strategy", scenario=scenario)
    rendered = await call("render_config", plan=plan["plan_id"])
    await finished(
        call, await call("launch_merge", recipe=rendered["recipe_id"], out="./merged", seed=1, verdict=plan["verdict"])
    )
    assert await verified(call, "./merged") == "verified"
    why = "; ".join(rule["because"] for rule in plan["rules"])
    text = f"{plan['strategy']['id']}, {plan['weights']}: {why}. What chat learnt is reduced; measure how much it may lose.\n"
    (workspace / "answer.md").write_text(text, encoding="utf-8")
    assert judged("favour-one", workspace) == []


@task("frankenmerge")
async def test_frankenmerge(call, workspace):
    scenario = {"sources": [{"name": "base", "ref": "./base", "kind": "full"}], "goal": "deeper_model"}
    plan = await call("recommend_strategy", scenario=scenario)
    assert plan["strategy"]["id"] == "passthrough"
    parts = [{"sources": [{"model": "./base", "layer_range": list(part)}]} for part in ((0, 3), (1, 4))]
    recipe = yaml.safe_dump({"merge_method": "passthrough", "slices": parts, "dtype": "float32"})
    assert (await call("validate_config", recipe=recipe))["ok"] is True
    await finished(call, await call("launch_merge", recipe=recipe, out="./deep"))
    said = [rule["because"] for rule in plan["rules"]] + [warning["message"] for warning in plan["warnings"]]
    text = "\n".join(said) + "\nNothing is gained before further training (healing) and an evaluation says so.\n"
    (workspace / "answer.md").write_text(text, encoding="utf-8")
    assert judged("frankenmerge", workspace) == []
