"""Verification and evaluation results."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from mcp_server.core.models.base import Frozen


class Check(Frozen):
    name: str
    passed: bool | None = Field(description="null: could not be decided")
    detail: str


class Verification(Frozen):
    verdict: Literal["verified", "failed", "unreadable", "inconclusive"]
    checks: list[Check]
    landed: dict[str, float | None] = Field(default_factory=dict, description="source → projection of merged−base on its delta")
    rounding_loss: dict[str, float | None] = Field(default_factory=dict)
    output: str = ""


class Interval(Frozen):
    low: float
    high: float


class Capability(Frozen):
    """One capability, measured on every model with the same prompts. `merged` and the rest are the suite's primary metric."""

    suite: str
    metric: str
    higher_is_better: bool = True
    n: int
    base: float | None = None
    sources: dict[str, float] = Field(default_factory=dict)
    expert: str | None = Field(default=None, description="the source that is best at it")
    merged: float | None = None
    retention: float | None = Field(default=None, description="merged ÷ expert")
    gain_recovered: float | None = Field(
        default=None,
        description="(merged − base) ÷ (expert − base); null when they differ by less than two standard errors",
    )
    ci: dict[str, Interval] = Field(default_factory=dict, description="'merged', 'gain_recovered', … → 95 % interval")
    detail: dict[str, Any] = Field(default_factory=dict, description="secondary metrics per model")


class Evaluation(Frozen):
    capabilities: dict[str, Capability]
    cross_context: dict[str, dict[str, float]] = Field(default_factory=dict)
    perplexity_ratio: float | None = Field(default=None, description="merged ÷ best source; above 1.1 adjust, above 2 failed")
    verdict: Literal["passed", "adjust", "failed", "inconclusive"]
    why: list[str] = Field(default_factory=list)
    next: dict[str, Any] | None = Field(default=None, description="the next recipe to try, and why")
    models: dict[str, str] = Field(default_factory=dict, description="label → folder")
    limit: int | None = None
    seconds: float | None = None


class ReportResult(Frozen):
    html: str
    markdown: str | None = None
    bytes: int
