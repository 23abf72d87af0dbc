"""What a user wants to merge and why. Every field is optional; what is absent is unknown, never a default."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator

from mcp_server.schemas.base import Frozen
from mcp_server.schemas.limits import MAX_SCENARIO_SOURCES


class ScenarioSource(Frozen):
    """One model or adapter that might go in."""

    name: str | None = Field(default=None, description="short", examples=["persona"])
    ref: str | None = Field(default=None, description="local folder or hub id", examples=["./persona_adapter"])
    kind: Literal["lora", "full"] | None = None
    capability: str | None = Field(default=None, description="what it adds", examples=["casual voice"])
    training_examples: int | None = Field(default=None, ge=0, le=10**15)
    rank: int | None = Field(default=None, ge=1, description="LoRA rank")
    importance: float | None = Field(default=None, gt=0, le=1e6, description="1 is neutral")
    norm: float | None = Field(default=None, ge=0, le=1e12, description="of its task vector, measured")
    base: str | None = Field(default=None, description="that it was trained on")
    architecture: str | None = Field(default=None, examples=["LlamaForCausalLM"])
    training: Literal["sft", "preference", "rl"] | None = Field(default=None, description="how it was trained")
    status: Literal["works", "broken", "unevaluated", "missing"] | None = None
    scores: dict[str, float] | None = None
    prompts: list[str] | None = Field(default=None, description="for a mixture of experts: prompts that go to it")
    layer_range: tuple[int, int] | None = Field(default=None, description="for a deeper model, end exclusive")


class Relation(Frozen):
    """How the sources stand to each other."""

    data_overlap: float | None = Field(default=None, ge=0, le=1)
    capabilities: Literal["complementary", "partial", "conflicting"] | None = None
    similarity: Literal["similar", "distinct"] | None = None
    redundant_deltas: bool | None = None
    same_base: bool | None = None
    sign_disagreement: float | None = Field(default=None, ge=0, le=1, description="measured by compare")
    cosine: float | None = Field(default=None, ge=-1, le=1, description="measured by compare")


class PairRelation(Relation):
    between: tuple[str, str]


class Favour(Frozen):
    favour: str


class Constraints(Frozen):
    ram_gib: float | None = Field(default=None, gt=0)
    disk_gib: float | None = Field(default=None, gt=0)
    gpu_gib: float | None = Field(default=None, ge=0)
    compute: Literal["none", "limited", "ample"] | None = None
    quality: Literal["tunable", "critical"] | None = None
    reuse: Literal["modular", "one_time"] | None = None
    iteration: Literal["fast", "slow"] | None = None
    training_data: Literal["available", "gone"] | None = Field(default=None, description="for retraining")


Goal = Literal["balanced", "baseline", "deeper_model", "smaller_model", "experts_on_demand"] | Favour


class Scenario(Frozen):
    sources: list[ScenarioSource] | None = None
    base_model: str | None = Field(default=None, description="`none`: there is no common base")
    layers: int | None = Field(default=None, ge=1, description="where no checkpoint tells")
    depth: int | None = Field(default=None, ge=2, le=4096, description="layers of a deeper or smaller model")
    tokenizer: Literal["base", "union"] | None = Field(default=None, description="vocabulary of the result")
    dtype: Literal["bfloat16", "float16", "float32"] | None = None
    relation: Relation | None = None
    relations: list[PairRelation] | None = None
    goal: Goal | None = None
    strategy: str | None = Field(default=None, description="that the user asked for")
    weighting: Literal["equal", "examples"] | None = Field(default=None, description="shares of an average")
    constraints: Constraints | None = None
    cross_context: dict[str, dict[str, float]] | None = Field(
        default=None, description="source → context → rate of its own behaviour there (evaluate cross)"
    )
    own_context: dict[str, str] | None = Field(default=None, description="source → its own context")

    @field_validator("sources", mode="before")
    @classmethod
    def _few(cls, sources: Any) -> Any:
        """Each pair of them is looked at, so their number is bounded before any rule runs."""
        if isinstance(sources, list) and len(sources) > MAX_SCENARIO_SOURCES:
            limit = f"{len(sources):,} sources exceed the limit of {MAX_SCENARIO_SOURCES}"
            raise ValueError(f"{limit}; merge groups of them in stages")
        return sources
