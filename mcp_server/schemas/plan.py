"""What `recommend` returns, and what `render` turns into a recipe."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from mcp_server.schemas.base import EngineId, Frozen, Message, Verdict
from mcp_server.schemas.scenario import Scenario


class StrategyChoice(Frozen):
    id: str
    parameters: dict[str, Any] = Field(default_factory=dict, description="global parameters by their mergekit names")


class RunnerUp(Frozen):
    strategy: str
    why: str
    parameters: dict[str, Any] = Field(default_factory=dict)
    rule: str = Field(default="", description="id of the rule that proposes it")
    source: str = ""


class MemoryNeed(Frozen):
    """An upper bound of memory that cannot be reclaimed, and whether the budget covers it (null: no budget was given)."""

    peak_anon_bytes: int
    fits: bool | None = None


class EngineChoice(Frozen):
    id: EngineId
    settings: dict[str, Any] = Field(default_factory=dict)
    fits: bool | None = Field(default=None, description="null: the sizes are unknown")
    peak_anon_bytes: int | None = None
    evidence: dict[str, MemoryNeed] = Field(default_factory=dict, description="what `verify` and `evaluate` need afterwards")
    note: str = ""


class FiredRule(Frozen):
    id: str
    because: str
    source: str


class EvaluationStep(Frozen):
    suite: str
    why: str
    when: str = "after the merge"
    rule: str = Field(default="", description="id of the rule that asks for it")
    source: str = ""


class Observed(Frozen):
    """What the files say, in the words of `inspect`; null: nothing of that kind was seen, or nothing could be looked at."""

    compatible: bool | None = Field(default=None, description="as `inspect` answers for these sources and this base")
    looked_at: list[str] = Field(default_factory=list, description="names of the sources that could be opened")
    unreachable: str | None = None
    misfits: str | None = None
    other_base: str | None = None
    doubtful_base: str | None = None
    unrelated: str | None = None
    unusable: str | None = None
    damaged: str | None = None
    quantised_base: str | None = None
    tokenizers: str | None = None
    templates: str | None = None
    settings: str | None = None
    said_otherwise: str | None = None
    relative_norm: float | None = Field(default=None, description="shortest task vector ÷ the base's weights, sampled")
    measured_by: str | None = Field(default=None, description="where cosine and norms come from")


class Plan(Frozen):
    """Saved as YAML by `recommend -o`; unknown answers stay in `questions`."""

    verdict: Verdict
    strategy: StrategyChoice | None = None
    weights: dict[str, float] = Field(default_factory=dict)
    source_parameters: dict[str, dict[str, Any]] = Field(
        default_factory=dict,
        description="source → parameters of its own (density, layer_range, gradients); they win over shared ones",
    )
    engine: EngineChoice | None = None
    runner_up: list[RunnerUp] = Field(default_factory=list)
    evaluation: list[EvaluationStep] = Field(default_factory=list)
    rules: list[FiredRule] = Field(default_factory=list)
    warnings: list[Message] = Field(default_factory=list)
    questions: list[str] = Field(default_factory=list)
    differences: list[str] = Field(default_factory=list, description="for cannot_merge: the fields that differ")
    dtype: str | None = None
    tokenizer: str | None = Field(default=None, description="base | union | a model whose tokenizer is taken")
    decided: bool = Field(default=True, description="false: too little is known to decide (exit code 3)")
    observed: Observed | None = Field(default=None, description="null: no source could be looked at")
    scenario: Scenario = Field(default_factory=Scenario)
    plan_id: str | None = Field(default=None, description="what every later call takes in the plan's place")


class Rendered(Frozen):
    strategy: str
    recipe: str = Field(description="the YAML text")
    recipe_id: str | None = Field(default=None, description="what every later call takes in the recipe's place")
    warnings: list[Message] = Field(default_factory=list)
    path: str | None = None
