"""What an evaluation is asked to do."""

from __future__ import annotations

import os
from typing import Final, Literal

from pydantic import Field

from mcp_server.formats.suites import Split
from mcp_server.schemas.base import Frozen

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


def quiet(offline: bool) -> None:
    """No progress bars in the log, no tokenizer threads, and no network unless it was asked for."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # a busy machine must not spin at barriers
    os.environ |= {"TQDM_DISABLE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1"}
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("LMEVAL_LOG_LEVEL", "ERROR")
    if offline:
        os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
