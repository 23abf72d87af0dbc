"""Strategies as an agent reads them in a list: what decides between them, without the details that one page would not hold."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from mcp_server.core.models.base import Frozen

if TYPE_CHECKING:
    from mcp_server.core.catalog import Catalog, Strategy

PHRASES_SHOWN = 2


class StrategySummary(Frozen):
    id: str
    title: str
    idea: str
    inputs: str = Field(description="how many sources, the base not counted")
    base: str = Field(description="required, optional, ignored, or one_of_the_sources")
    when: list[str]
    when_not: list[str]
    adapter_space: bool = Field(description="exact on LoRA adapters alone: launch_merge(output='adapter')")


class StrategyPage(Frozen):
    strategies: list[StrategySummary]
    total: int
    next_offset: int | None = None


def page_of_strategies(catalog: Catalog, offset: int, limit: int) -> StrategyPage:
    """Strategies `offset` to `offset + limit` in alphabetical order."""
    everything = sorted(catalog.strategies.values(), key=lambda s: s.id)
    page = everything[offset : offset + limit]
    after = offset + len(page)
    return StrategyPage(
        strategies=[_summary(s) for s in page],
        total=len(everything),
        next_offset=after if after < len(everything) else None,
    )


def _summary(strategy: Strategy) -> StrategySummary:
    low, high = strategy.inputs.min, strategy.inputs.max
    if high is None:
        count = f"{low} or more"
    else:
        count = str(low) if high == low else f"{low} to {high}"
    return StrategySummary(
        id=strategy.id,
        title=strategy.title,
        idea=strategy.idea,
        inputs=count,
        base=strategy.inputs.base,
        when=strategy.when[:PHRASES_SHOWN],
        when_not=strategy.when_not[:PHRASES_SHOWN],
        adapter_space=strategy.adapter_space,
    )
