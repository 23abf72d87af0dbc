"""What one model answered on one suite, as numbers per prompt."""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import Field

from mcp_server.schemas.base import Frozen

Kind = Literal["mean", "perplexity", "point"]


class Metric(Frozen):
    """One metric of one model on one suite.

    `mean`        `values` are scores per prompt; the figure is their mean
    `perplexity`  `values` are natural log-likelihoods per document, `weights` their token counts; exp(−Σ values / Σ weights)
    `point`       only the aggregate `value` is known (an aggregation of lm-eval that is not a mean): no interval
    """

    kind: Kind
    values: list[float] = Field(default_factory=list)
    weights: list[float] | None = None
    value: float | None = None

    def figure(self) -> float | None:
        """The aggregate; null when there is nothing to aggregate."""
        if self.kind == "point":
            return self.value
        if not self.values:
            return None
        if self.kind == "perplexity":
            total = sum(self.weights or [])
            return math.exp(min(-sum(self.values) / total, 700.0)) if total else None
        return sum(self.values) / len(self.values)


class SuiteSamples(Frozen):
    """One model on one suite: every metric over the same prompts in the same order, with the replies kept for a second look."""

    suite: str
    metric: str = Field(description="the primary one; a key of `metrics`")
    higher_is_better: bool
    metrics: dict[str, Metric]
    prompt_ids: list[str] = Field(description="hash of each prompt; equal between models, or they were not asked the same")
    replies: list[str] = Field(default_factory=list, description="generated text per prompt; empty for likelihood suites")
    prompts: list[str] = Field(default_factory=list, description="what was asked, without template and examples; as `replies`")
    expected: list[str] = Field(default_factory=list, description="the suite's own answers; as `replies`")
    tables: dict[str, Any] = Field(default_factory=dict, description="per-prompt labels, such as expected and chosen mode")

    @property
    def primary(self) -> Metric:
        return self.metrics[self.metric]
