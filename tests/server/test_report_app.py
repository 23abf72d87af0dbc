"""The report as an MCP App: declared, linked from its tool, shown by clients that say they can, the same result elsewhere."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from mcp import Client
from mcp.client.extension import advertise
from mcp.server.apps import APP_MIME_TYPE, EXTENSION_ID

from mcp_server.server import build_server
from mcp_server.server.apps import HTML_KEY, PAGE, PAGE_URI
from tests.engine.synthetic import run
from tests.server.conftest import data_of, recipe_of

pytestmark = pytest.mark.anyio
CAN_SHOW = advertise(EXTENSION_ID, {"mimeTypes": [APP_MIME_TYPE]})

HOST = """\
const said = [], heard = [];
const parent = { postMessage: (message) => said.push(message) };
const replaced = {};
const element = (name) => ({ replaceChildren: (...children) => { replaced[name] = children; }, textContent: "" });
const document = { head: element("head"), body: element("body"), documentElement: { scrollWidth: 300, scrollHeight: 900 } };
const window = { parent, addEventListener: (name, react) => { if (name === "message") heard.push(react); } };
const parsed = (text) => ({ head: { children: ["head of " + text] }, body: { children: ["body of " + text] } });
class DOMParser { parseFromString(text) { return parsed(text); } }
const tell = (data, source = parent) => heard.forEach((react) => react({ source, data: { jsonrpc: "2.0", ...data } }));
PAGE_SCRIPT
tell({ id: 1, result: { protocolVersion: "2026-01-26" } });
tell({ method: "ui/notifications/tool-result", params: { _meta: { "model-merging/report": "stranger" } } }, {});
tell({ id: 7, method: "ping" });
tell({ method: "ui/notifications/tool-result", params: { _meta: { "model-merging/report": "REPORT" } } });
tell({ method: "ui/notifications/tool-result", params: { structuredContent: { html: "/out/report.html" } } });
console.log(JSON.stringify({ said: said.map((m) => m.method ?? m.id), replaced, fallback: document.body.textContent }));
"""


@pytest.fixture
def merged(workspace: Path) -> Path:
    run(recipe_of("code", "chat"), workspace / "merged", name="merged")
    return workspace / "merged"


async def test_the_server_declares_apps_and_links_the_page_from_the_report_tool(workspace: Path) -> None:
    async with Client(build_server()) as client:
        capabilities = client.server_capabilities
        linked = {t.name: t.meta for t in (await client.list_tools()).tools if t.meta and "ui" in t.meta}
        (page,) = (await client.read_resource(PAGE_URI)).contents
    assert capabilities is not None
    assert EXTENSION_ID in (capabilities.extensions or {})
    assert linked == {"write_report": {"ui": {"resourceUri": PAGE_URI}}}
    assert (page.mime_type, getattr(page, "text", "")) == (APP_MIME_TYPE, PAGE)


async def test_a_client_that_shows_apps_gets_the_report_and_others_the_same_result(merged: Path) -> None:
    results: list[Any] = []
    for extensions in ([CAN_SHOW], []):
        async with Client(build_server(), extensions=extensions) as client:
            results.append(await client.call_tool("write_report", {"out": "./merged"}))
    showing, plain = results
    assert (showing.structured_content, showing.content) == (plain.structured_content, plain.content)
    assert HTML_KEY not in (plain.meta or {})
    assert (showing.meta or {})[HTML_KEY] == Path(data_of(plain)["html"]).read_text(encoding="utf-8")


def test_the_page_loads_nothing() -> None:
    assert re.findall(r"https?://|src=|href=|fetch\(|import ", PAGE) == []


@pytest.mark.skipif(shutil.which("node") is None, reason="no node here")
def test_the_page_puts_the_report_in_its_place_and_listens_to_its_host_alone(tmp_path: Path) -> None:
    script = re.search(r"<script>(.*)</script>", PAGE, re.S)
    assert script is not None
    (tmp_path / "host.js").write_text(HOST.replace("PAGE_SCRIPT", script[1].replace('"use strict";', "")), encoding="utf-8")
    ended = subprocess.run(["node", str(tmp_path / "host.js")], capture_output=True, text=True, check=True, timeout=60)
    found = json.loads(ended.stdout)
    size = "ui/notifications/size-changed"
    assert found["said"] == ["ui/initialize", "ui/notifications/initialized", 7, size, size]
    assert found["replaced"] == {"head": ["head of REPORT"], "body": ["body of REPORT"]}
    assert found["fallback"] == "/out/report.html"
