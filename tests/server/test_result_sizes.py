"""What an agent reads back stays small: 1,500 tokens at the median over the calls of one merge, and none is far above."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import pytest
from mcp import Client

from mcp_server.server import build_server
from tests.tiny import write_adapter, write_model

pytestmark = pytest.mark.anyio
CHARACTERS_OF_A_TOKEN = 3.5


async def test_results_cost_less_than_1500_tokens_at_the_median(
    tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    base = write_model(tmp_path / "base")
    refs = [str(write_adapter(tmp_path / name, base, seed=seed)) for seed, name in enumerate(("persona", "tools"), 1)]
    scenario = {"sources": [{"ref": ref, "kind": "lora", "training_examples": 200} for ref in refs], "base_model": str(base)}
    sizes: dict[str, float] = {}
    async with Client(build_server(), read_timeout_seconds=120) as client:

        async def call(tool: str, **arguments: Any) -> dict[str, Any]:
            result = await client.call_tool(tool, arguments)
            assert not result.is_error, result.content
            sizes[tool] = sum(len(getattr(part, "text", "")) for part in result.content) / CHARACTERS_OF_A_TOKEN
            return dict(result.structured_content or {})

        await call("inspect_models", refs=refs, base=str(base))
        plan = await call("recommend_strategy", scenario=scenario)
        rendered = await call("render_config", plan=plan["plan_id"])
        await call("validate_config", recipe=rendered["recipe_id"])
        await call("estimate_ram", recipe=rendered["recipe_id"])
        gone = await call("merge_adapters", refs=refs, base=str(base), out="./merged", go_on=True)
        await call("merge_status", job_id=gone["job"]["job_id"], wait_seconds=50)
        for tool in ("list_merges", "list_strategies", "list_suites"):
            await call(tool)
        await call("list_evaluations", out="./merged")
        await call("write_report", out="./merged")
    shown = json.dumps({tool: round(size) for tool, size in sizes.items()})
    assert statistics.median(sizes.values()) <= 1_500, shown
    assert max(sizes.values()) <= 2_300, shown
