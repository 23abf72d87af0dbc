"""Which engine runs a recipe, and with what settings."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Final

from mcp_server.core.errors import Unsupported
from mcp_server.core.models.base import EngineId
from mcp_server.core.models.job import MergeRequest
from mcp_server.core.recipe import Recipe

WORKERS: Final[dict[EngineId, str]] = {"stream": "mcp_server.workers.stream", "mergekit": "mcp_server.workers.mergekit"}


@dataclass(frozen=True, slots=True)
class Choice:
    engine: EngineId
    worker: str
    shard_size: int
    estimate_bytes: int | None = None


def choose(_recipe: Recipe, request: MergeRequest) -> Choice:
    """The engine that was asked for, or for `auto` the first that covers the recipe and fits the budget."""
    if request.output == "adapter":
        return Choice("stream", WORKERS["stream"], request.shard_size)
    if request.engine == "auto" and find_spec(WORKERS["stream"]) is not None:
        return Choice("stream", WORKERS["stream"], request.shard_size)
    engine: EngineId = "mergekit" if request.engine == "auto" else request.engine
    if find_spec(WORKERS[engine]) is None:
        raise Unsupported(f"this installation has no engine {engine!r}", "use engine 'mergekit'")
    return Choice(engine, WORKERS[engine], request.shard_size)
