"""Requests and states of background work."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from mcp_server.schemas.base import Engine, EngineId, Frozen

JobKind = Literal["merge", "compare", "verify", "evaluate", "sweep", "prepare"]
JobState = Literal["queued", "running", "succeeded", "failed", "cancelled", "interrupted"]


class MergeRequest(Frozen):
    """Everything a merge needs; the same names in CLI and MCP."""

    recipe: str = Field(description="recipe text (YAML)")
    recipe_folder: str | None = Field(default=None, description="what relative paths in the recipe start from")
    out: str = Field(description="output folder, absolute")
    engine: Engine = "auto"
    output: Literal["model", "adapter"] = "model"
    rank: int | None = Field(default=None, ge=1, description="for --output adapter with a method that needs an SVD")
    ram_gib: float | None = Field(default=None, gt=0)
    seed: int | None = None
    threads: int | None = Field(default=None, ge=1)
    shard_size: int = Field(default=5_000_000_000, gt=0, description="bytes")
    overwrite: bool = False
    allow_nonfinite: bool = False
    hash: Literal["headers", "full"] = "headers"
    keep_partial: bool = False


class JobRequest(Frozen):
    kind: JobKind
    parameters: dict[str, Any]


class Progress(Frozen):
    stage: str
    done: float = 0
    total: float | None = None
    unit: str = ""
    message: str = ""


class JobStatus(Frozen):
    job_id: str
    kind: JobKind
    state: JobState
    created: str = Field(description="UTC, ISO 8601")
    started: str | None = None
    finished: str | None = None
    output: str | None = None
    engine: EngineId | None = None
    progress: Progress | None = None
    error: dict[str, Any] | None = None
    exit_code: int | None = None
    log_path: str
    next_step: str = ""
    result: dict[str, Any] | None = None


class JobList(Frozen):
    jobs: list[JobStatus]
    total: int
    next_offset: int | None = None


class LogPage(Frozen):
    job_id: str
    text: str
    next_offset: int | None
    path: str


class MergeResult(Frozen):
    job_id: str
    state: JobState
    output: str
    engine: EngineId
    wall_seconds: float
    peak_anon_bytes: int | None
    seed: int | None = None
    tensors: int | None = None
    bytes: int | None = None
    landed: dict[str, float | None] = Field(default_factory=dict)
    rounding_loss: dict[str, float | None] = Field(default_factory=dict)
    warnings: list[str] = Field(default_factory=list)
