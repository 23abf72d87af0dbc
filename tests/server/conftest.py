"""A server in memory, in a workspace with tiny real checkpoints, whose jobs are done by the fake worker."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mcp import Client
from mcp.types import CallToolResult

from mcp_server.jobs import engines, launch
from mcp_server.server import build_server
from tests import tiny

FAKE = "tests.fake_worker"
Call = Callable[..., Any]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def workspace(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """base/, code/ and chat/ (models), persona/ (an adapter); the server's working folder."""
    folder = tmp_path / "work"
    for seed, name in enumerate(("base", "code", "chat")):
        tiny.write_model(folder / name, seed)
    tiny.write_adapter(folder / "persona", folder / "base")
    monkeypatch.chdir(folder)
    monkeypatch.delenv("MODEL_MERGING_ROOTS", raising=False)
    monkeypatch.setitem(engines.WORKERS, "mergekit", FAKE)
    for kind in ("compare", "verify", "evaluate", "sweep"):
        monkeypatch.setitem(launch.WORKERS, kind, FAKE)
    return folder


@pytest.fixture
def call(workspace: Path) -> Call:
    """await call(tool, **arguments) through an in-memory client, without elicitation."""

    async def made(tool: str, **arguments: Any) -> CallToolResult:
        async with Client(build_server()) as client:
            return await client.call_tool(tool, arguments)

    return made


def text_of(result: CallToolResult) -> str:
    return "\n".join(getattr(block, "text", "") for block in result.content)


def data_of(result: CallToolResult) -> dict[str, Any]:
    assert not result.is_error, text_of(result)
    assert result.structured_content is not None
    return result.structured_content


def recipe_of(*names: str, script: list[dict[str, Any]] | None = None) -> str:
    """Absolute paths: rewriting relative ones would drop the comment that scripts the fake worker."""
    return tiny.linear_recipe(*(f"{Path.cwd()}/{name}" for name in names), script=script)
