"""The MCP Inspector's command line, in all three protocol eras. Every call starts a server of its own."""

from __future__ import annotations

import json
import time
from functools import partial
from typing import Any

from tests.clients.ground import DEMO_BASE, LAUNCHER, MADE, ROOT, Check, environment, parsed, recipe, require, run

ERAS = ("legacy", "modern", "auto")


def checks() -> list[Check]:
    found: list[Check] = []
    for era in ERAS:
        found.append(("Inspector", f"lists, strictly ({era} era)", partial(lists, era)))
        found.append(("Inspector", f"every read-only tool ({era} era)", partial(read_only_tools, era)))
    found.append(("Inspector", "starts the demo merge in one call and reads its result in another", merge_across_calls))
    return found


def ask(era: str, method: str, *more: str, code: int = 0, timeout: float = 300) -> Any:
    """One Inspector call; the result it printed."""
    store = f"MODEL_MERGING_HOME={environment()['MODEL_MERGING_HOME']}"
    command = ["mcp-inspector", "--cli", LAUNCHER, "-e", store, "--connect-timeout", "90000", "--protocol-era", era]
    command += ["--format", "json", "--method", method, *more]
    ended = run(*command, timeout=timeout)
    require(ended.returncode == code, f"{method} {more}: exit {ended.returncode}\n{ended.stdout}\n{ended.stderr}")
    return parsed(ended.stdout)


def call(era: str, tool: str, *, code: int = 0, timeout: float = 300, **arguments: Any) -> dict[str, Any]:
    pairs = [f"{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in arguments.items()]
    more = ["--tool-name", tool] + [part for pair in pairs for part in ("--tool-arg", pair)]
    answer = ask(era, "tools/call", *more, code=code, timeout=timeout)
    result = answer.get("result", answer)
    return dict(result.get("structuredContent") or result)


def lists(era: str) -> str:
    tools = ask(era, "tools/list", "--strict")
    tools = tools.get("result", tools)["tools"]
    templates = ask(era, "resources/templates/list")
    templates = templates.get("result", templates)["resourceTemplates"]
    prompts = ask(era, "prompts/list")
    prompts = prompts.get("result", prompts)["prompts"]
    known = json.loads((ROOT / "tests" / "server" / "contract.json").read_text(encoding="utf-8"))
    wanted = [len(known[kind]) for kind in ("tools", "resource_templates", "prompts")]
    require([len(tools), len(templates), len(prompts)] == wanted, (len(tools), len(templates), len(prompts)))
    return f"{len(tools)} tools, {len(templates)} resource templates, {len(prompts)} prompts"


def read_only_tools(era: str) -> str:
    sources = ["examples/taskmaster/persona", "examples/taskmaster/tools"]
    require(call(era, "inspect_models", refs=sources, base=DEMO_BASE)["compatible"] is True, "not compatible")
    plan = call(era, "recommend_strategy", scenario_file="examples/taskmaster/scenario.yaml")
    require(plan["verdict"] in ("merge", "merge_with_caution"), plan["verdict"])
    require(call(era, "list_strategies", limit=3)["total"] >= 8, "too few strategies")
    rendered = call(era, "render_config", plan=plan)["recipe"]
    require(call(era, "validate_config", recipe=rendered)["ok"] is True, "the rendered recipe is not valid")
    require(call(era, "estimate_ram", recipe=rendered, ram_gib=12)["engines"]["stream"]["fits"] is True, "does not fit")
    require("jobs" in call(era, "list_merges"), "no jobs")
    for tool in ("merge_status", "merge_logs"):
        said = json.dumps(call(era, tool, job_id="no-such-job", code=5))
        require("no-such-job" in said, said)
    return "9 tools called; a missing job is a tool error that names it"


def merge_across_calls() -> str:
    started = call("auto", "launch_merge", recipe=recipe(), out=str(MADE / "inspector-merge"))
    begin = time.monotonic()
    state = started["state"]
    while state in ("queued", "running") and time.monotonic() - begin < 300:
        status = call("auto", "merge_status", job_id=started["job_id"], wait_seconds=20)
        state = status["state"]
    require(state == "succeeded", status)
    return f"{status['engine']} engine, {time.monotonic() - begin:.0f} s"
