"""One seam for every transport and every test: `build_server()` returns the whole server, not yet connected to anything."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from mcp.server import MCPServer
from mcp.server.mcpserver.exceptions import ToolError

from mcp_server.core.errors import did_you_mean
from mcp_server.server import completions, prompts, resources
from mcp_server.server.instructions import INSTRUCTIONS
from mcp_server.server.tools import all_tools


class MergingServer(MCPServer[dict[str, Any]]):
    """The SDK's server, except that a misspelt tool name is answered with the nearest one."""

    async def call_tool(self, name: str, arguments: dict[str, Any], context: Any = None) -> Any:
        known = [tool.name for tool in await self.list_tools()]
        if name not in known:
            raise ToolError(f"there is no tool {name!r}.{did_you_mean(name, known)}\n→ known: {', '.join(known)}")
        return await super().call_tool(name, arguments, context)


def build_server() -> MergingServer:
    """Tools, resources, prompts and completions on one server object."""
    server = MergingServer(
        name="model-merging",
        title="Model merging",
        description="Merge fine-tuned models and LoRA adapters, verified and evaluated.",
        instructions=INSTRUCTIONS,
        version=version("model-merging"),
        tools=list(all_tools()),
        log_level="WARNING",
    )
    resources.register(server)
    prompts.register(server)
    completions.register(server)
    return server
