"""The report inside the client: an MCP App (extension io.modelcontextprotocol/ui, SEP-1865, protocol 2026-01-26).

A client that shows apps loads one fixed page, which `write_report` names in its `_meta`, and hands it the tool's result. To such
a client alone the result carries the report's own HTML in its `_meta`, where no model reads it; the page puts it in its place.
Every other client gets the same result without it. The report has no script, the page has one, and neither loads anything.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from mcp.server.apps import Apps, client_supports_apps
from mcp.types import CallToolResult

from mcp_server.server.checked import CheckedTool

PAGE_URI: Final = "ui://model-merging/report.html"
HTML_KEY: Final = "model-merging/report"
LARGEST: Final = 4_000_000
"""Characters of a report that are handed on; a report of two sources has a hundredth of it."""


class ReportTool(CheckedTool):
    """A tool whose result names a report in `html`."""

    async def run(self, arguments: dict[str, Any], context: Any, convert_result: bool = False) -> Any:
        result = await super().run(arguments, context, convert_result=convert_result)
        if not isinstance(result, CallToolResult) or result.is_error or not client_supports_apps(context):
            return result
        page = Path(str((result.structured_content or {}).get("html"))).read_text(encoding="utf-8")
        return result.model_copy(update={"meta": {**(result.meta or {}), HTML_KEY: page}}) if len(page) <= LARGEST else result


def shown_in_client(tool: CheckedTool) -> ReportTool:
    """The tool, with the page that shows its result."""
    fields = {name: getattr(tool, name) for name in type(tool).model_fields}
    return ReportTool(**{**fields, "meta": {**(tool.meta or {}), "ui": {"resourceUri": PAGE_URI}}})


def report_app() -> Apps:
    """The extension: what the server declares, and the page."""
    app = Apps()
    app.add_html_resource(PAGE_URI, PAGE, name="report", title="Merge report", description="Shows what write_report wrote.")
    return app


PAGE: Final = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>Merge report</title>
</head>
<body>
<p>The report appears here when it is written.</p>
<script>
"use strict";
const host = window.parent;
const send = (message) => host.postMessage({ jsonrpc: "2.0", ...message }, "*");
const tellSize = () => {
  const { scrollWidth: width, scrollHeight: height } = document.documentElement;
  send({ method: "ui/notifications/size-changed", params: { width, height } });
};
const show = (result) => {
  const html = result._meta?.["model-merging/report"];
  if (html === undefined) {
    document.body.textContent = result.structuredContent?.html ?? "There is no report; the reply says why.";
  } else {
    const report = new DOMParser().parseFromString(html, "text/html");
    document.head.replaceChildren(...report.head.children);
    document.body.replaceChildren(...report.body.children);
  }
  tellSize();
};
window.addEventListener("message", ({ source, data }) => {
  if (source !== host || data?.jsonrpc !== "2.0") return;
  if (data.id === 1 && data.result) send({ method: "ui/notifications/initialized", params: {} });
  else if (data.method === "ui/notifications/tool-result") show(data.params);
  else if (data.method !== undefined && data.id !== undefined) send({ id: data.id, result: {} });
});
window.addEventListener("resize", tellSize);
const appInfo = { name: "model-merging", version: "1" };
send({ id: 1, method: "ui/initialize", params: { appInfo, appCapabilities: {}, protocolVersion: "2026-01-26" } });
</script>
</body>
</html>
"""
