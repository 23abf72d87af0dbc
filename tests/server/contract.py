"""What a client sees of the server, as data. `python -m tests.server.contract` rewrites the committed snapshot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import anyio
from mcp import Client

from mcp_server.server import build_server

SNAPSHOT = Path(__file__).with_name("contract.json")


async def surface() -> dict[str, Any]:
    """Names, titles, descriptions, schemas and annotations of everything that can be listed."""
    async with Client(build_server()) as client:
        tools = (await client.list_tools()).tools
        templates = (await client.list_resource_templates()).resource_templates
        prompts = (await client.list_prompts()).prompts
        found = {"instructions": client.instructions, "tools": tools, "resource_templates": templates, "prompts": prompts}
        return json.loads(
            json.dumps(found, default=lambda model: model.model_dump(mode="json", by_alias=True, exclude_none=True))
        )


def as_text(found: dict[str, Any]) -> str:
    return json.dumps(found, indent=1, ensure_ascii=False, sort_keys=True) + "\n"


if __name__ == "__main__":
    SNAPSHOT.write_text(as_text(anyio.run(surface)), encoding="utf-8")
