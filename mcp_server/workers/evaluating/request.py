"""What an evaluation is asked to do."""

from __future__ import annotations

from typing import Final, Literal

from pydantic import Field

from mcp_server.core.models.base import Frozen
from mcp_server.core.suites import Split

BATCH: Final = 16


class Request(Frozen):
    """What the worker takes; unknown keys are errors."""

    out: str | None = None
    suites: list[str] = Field(default_factory=list)
    base: str | None = None
    sources: dict[str, str] | None = None
    against: list[str] = Field(
        default_factory=list, description="NAME=REF; `base` and sources' names replace what the merge says"
    )
    cross: bool = False
    limit: int | None = Field(default=None, ge=1)
    quick: bool = False
    split: Split = "test"
    backend: Literal["hf", "openai"] = "hf"
    endpoint: str | None = None
    served: dict[str, str] = Field(default_factory=dict, description="label → model name at the endpoint")
    tokenizer: str | None = None
    batch_size: int = Field(default=BATCH, ge=1)
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    threads: int | None = Field(default=None, ge=1)
    suite_folders: list[str] = Field(default_factory=list)
    offline: bool = True
