"""What was made of a merge for another program."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from mcp_server.schemas.base import Frozen

Target = Literal["gguf", "ollama", "vllm", "mlx"]
Quant = Literal["F16", "BF16", "Q8_0", "Q6_K", "Q5_K_M", "Q5_K_S", "Q4_K_M", "Q4_K_S", "Q3_K_M"]


class Exported(Frozen):
    """Also kept as `export.json` in the folder."""

    target: Target
    folder: str
    source: str = Field(description="name of the merge's folder")
    kind: str = Field(description="model or adapter")
    files: dict[str, int] = Field(description="file → bytes")
    quant: Quant | None = None
    tensor_types: dict[str, int] = Field(default_factory=dict, description="ggml type → number of tensors")
    weight_error: float | None = Field(
        default=None, description="‖quantised − 16 bit‖ / ‖16 bit‖ over all weights; null: nothing was quantised"
    )
    worst_tensor: str | None = None
    loads: bool | None = Field(default=None, description="in llama.cpp; null: not tried, see notes")
    replies: list[Reply] = Field(default_factory=list, description="greedy, of the merge in transformers and of the export")
    same_replies: int | None = None
    perplexity: Perplexity | None = Field(default=None, description="what the export costs in plain prose; null: not measured")
    command: str = Field(description="what to run next")
    notes: list[str] = Field(default_factory=list)


class Reply(Frozen):
    prompt: str
    merge: str | None = Field(default=None, description="null: the merge was not run")
    export: str


class Perplexity(Frozen):
    """exp(−mean log-likelihood) of the same tokens of one passage, by transformers and by llama.cpp."""

    tokens: int
    merge: float | None = Field(default=None, description="null: the merge was not run")
    export: float
