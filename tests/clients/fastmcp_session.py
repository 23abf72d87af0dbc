"""Run by the clients' own Python: `fastmcp_session.py stdio LAUNCHER` or `fastmcp_session.py URL TOKEN`."""

import asyncio
import json
import os
import sys

from fastmcp import Client
from fastmcp.client.transports import StdioTransport


async def main(target: str, extra: str) -> None:
    if target == "stdio":
        client = Client(StdioTransport(command=extra, args=[], env=dict(os.environ)))
    else:
        client = Client(target, auth=extra or None)
    async with client:
        tools = await client.list_tools()
        listed = await client.call_tool("list_strategies", {"limit": 2})
        refused = await client.call_tool("merge_status", {"job_id": "no-such-job"}, raise_on_error=False)
        seen = {
            "tools": len(tools),
            "strategies": len(listed.structured_content["strategies"]),
            "refused": refused.is_error and "no-such-job" in refused.content[0].text,
        }
        print(json.dumps(seen))


asyncio.run(main(*sys.argv[1:]))
