"""Clients by other SDKs: TypeScript 1.x and 2.x, and fastmcp. And the skill's own checker."""

from __future__ import annotations

import json
from functools import partial

from mcp_server.formats.provenance import Provenance, read_provenance, write_provenance
from tests.clients.conformance import http_server
from tests.clients.ground import CLIENTS, HERE, LAUNCHER, MADE, ROOT, Check, parsed, recipe, require, run

TOOLS = json.loads((ROOT / "tests" / "server" / "contract.json").read_text(encoding="utf-8"))["tools"]


def checks() -> list[Check]:
    return [
        ("TypeScript SDK 1.x", "lists, calls, errors, resources, prompts, completions", typescript_v1),
        ("TypeScript SDK 2.x", "is asked before a folder is replaced, 2025 handshake", partial(typescript_v2, "legacy")),
        ("TypeScript SDK 2.x", "is asked before a folder is replaced, 2026 discovery", partial(typescript_v2, "auto")),
        ("fastmcp", "stdio: lists, call, progress", partial(fastmcp, "stdio")),
        ("fastmcp", "HTTP with a token: lists, call, progress", fastmcp_http),
        ("skills-ref", "agentskills validate", agentskills),
    ]


def typescript_v1() -> str:
    seen = parsed(run("node", CLIENTS / "typescript_v1.mjs", LAUNCHER, ROOT).stdout)
    wanted = {"tools": len(TOOLS), "prompts": ["challenge_plan", "diagnose_merge", "plan_merge"], "templates": 3, "strategies": 2,
              "refused": True, "resource": True, "prompt": 1, "completed": ["task_arithmetic"]}  # fmt: skip
    require(seen == wanted, seen)
    return f"{len(TOOLS)} tools"


def typescript_v2(mode: str) -> str:
    occupied = MADE / "occupied"
    occupied.mkdir(exist_ok=True)
    record = Provenance(
        created="", job_id="", product="model-merging", engine="stream", engine_version="", method="linear", recipe="", sources=[]
    )
    write_provenance(occupied, record)
    ended = run("node", CLIENTS / "typescript_v2.mjs", LAUNCHER, ROOT, recipe(), occupied, mode)
    require(
        parsed(ended.stdout) == {"tools": len(TOOLS), "strategies": 2, "asked": True, "obeyed": True}, ended.stdout + ended.stderr
    )
    require(read_provenance(occupied) == record, "the folder was replaced although the user said no")
    return "asked once; the no was obeyed"


def fastmcp(target: str) -> str:
    ended = run(CLIENTS / "py" / "bin" / "python", HERE / "fastmcp_session.py", target, LAUNCHER)
    require(ended.returncode == 0, ended.stderr)
    seen = parsed(ended.stdout)
    require(seen == {"tools": len(TOOLS), "strategies": 2, "refused": True}, seen)
    return f"{len(TOOLS)} tools"


def fastmcp_http() -> str:
    token = "a-token-for-the-clients-check"
    with http_server(MODEL_MERGING_HTTP_TOKEN=token) as port:
        refused = run(CLIENTS / "py" / "bin" / "python", HERE / "fastmcp_session.py", f"http://127.0.0.1:{port}/mcp", "")
        require(refused.returncode != 0, "answered without the token")
        ended = run(CLIENTS / "py" / "bin" / "python", HERE / "fastmcp_session.py", f"http://127.0.0.1:{port}/mcp", token)
    require(ended.returncode == 0, ended.stderr)
    require(parsed(ended.stdout)["tools"] == len(TOOLS), ended.stdout)
    return f"{len(TOOLS)} tools; refused without the token"


def agentskills() -> str:
    ended = run(CLIENTS / "py" / "bin" / "agentskills", "validate", ROOT / "skills" / "model-merging")
    require(ended.returncode == 0, ended.stdout + ended.stderr)
    return ended.stdout.strip().split(":")[0]
