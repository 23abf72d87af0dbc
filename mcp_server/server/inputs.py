"""The arguments that several tools share, each with its description, examples and bounds in one place."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from mcp.types import ToolAnnotations
from pydantic import Field

from mcp_server.schemas.base import OutputFormat, Space

MAX_RECIPE_CHARACTERS = 1_000_000
MAX_WAIT_SECONDS = 50
"""Clients give up on a call after 60 s."""

Ref = Annotated[
    str,
    Field(
        min_length=1,
        max_length=4096,
        description="Model or adapter: folder, hub id, or demo:smollm2-135m-instruct.",
        examples=["./persona_adapter", "meta-llama/Llama-3.2-3B-Instruct"],
    ),
]
Recipe = Annotated[
    str,
    Field(
        min_length=1,
        max_length=MAX_RECIPE_CHARACTERS,
        description="recipe_id, plan_id, mergekit YAML or its path.",
        examples=["recipe-0123456789ab", "./recipe.yml"],
    ),
]
RamGib = Annotated[
    float | None,
    Field(gt=0, le=100_000, description="For the merge. Default: what is free."),
]
Out = Annotated[
    str,
    Field(min_length=1, max_length=4096, description="The merge's folder, or its job's id."),
]
Output = Annotated[
    Literal["model", "adapter"],
    Field(description="adapter: LoRAs become one (linear, task_arithmetic: exact)."),
]
Form = Annotated[
    OutputFormat | None,
    Field(description="Stored as an FP8 source is."),
]
AdapterSpace = Annotated[
    Space,
    Field(description="An adapter's method works on weights, the factors' core, or a core of `rank`."),
]
Rank = Annotated[int | None, Field(ge=1, le=4096, description="Of an adapter whose method needs an SVD.")]
Seed = Annotated[int | None, Field(ge=0, description="Of random methods; recorded.")]
JobId = Annotated[
    str,
    Field(min_length=1, max_length=200, description="The started job's id."),
]
Suites = Annotated[
    list[str] | None,
    Field(
        max_length=20,
        description="Names (list_suites), lm-eval tasks, .txt, .jsonl. Default: perplexity and what fits.",
        examples=[["taskmaster_persona", "task_api_tools", "perplexity"]],
    ),
]
Against = Annotated[
    dict[str, Ref] | None,
    Field(
        max_length=12,
        description="name → model. Default: base and sources of the merge.",
        examples=[{"base": "demo:smollm2-135m-instruct", "persona": "./persona_adapter"}],
    ),
]
Data = Annotated[
    list[str] | None,
    Field(
        max_length=20,
        description="Own .jsonl: prompt or messages, expected, match (exact, contains, regex, json, choice).",
        examples=[["./my_prompts.jsonl"]],
    ),
]
Limit = Annotated[int | None, Field(ge=1, le=100_000, description="First N prompts of each suite.")]
Offset = Annotated[int, Field(ge=0, description="The page before's next_offset.")]
PageSize = Annotated[int, Field(ge=1, le=50, description="Page size.")]
PlanTable = Annotated[
    str | dict[str, Any] | None,
    Field(description="plan_id (or the plan itself).", examples=["plan-0123456789ab"]),
]
PlanFile = Annotated[str | None, Field(max_length=4096, description="Path of a saved plan, instead.")]


LOOKS = ToolAnnotations(read_only_hint=True, open_world_hint=True)
"""Reads headers of hub ids, where the operator allows the network."""
READS = ToolAnnotations(read_only_hint=True, open_world_hint=False)
STARTS = ToolAnnotations(read_only_hint=False, destructive_hint=False, idempotent_hint=False, open_world_hint=False)
DOWNLOADS = ToolAnnotations(read_only_hint=False, destructive_hint=False, idempotent_hint=True, open_world_hint=True)
UPLOADS = ToolAnnotations(read_only_hint=False, destructive_hint=True, idempotent_hint=False, open_world_hint=True)
REPEATABLE = ToolAnnotations(read_only_hint=False, destructive_hint=False, idempotent_hint=True, open_world_hint=False)
ENDS = ToolAnnotations(read_only_hint=False, destructive_hint=True, idempotent_hint=True, open_world_hint=False)
REPLACES = ToolAnnotations(read_only_hint=False, destructive_hint=True, idempotent_hint=False, open_world_hint=False)
