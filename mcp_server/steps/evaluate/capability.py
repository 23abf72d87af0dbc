"""One capability: base, every source and the merge on the same prompts.

Retention alone flatters: a merge that keeps 92 % of a score can have kept 28 % of what fine-tuning gained (FusionBench's
Flan-T5 tables). So the gain recovered stands beside it, and only where there was a gain to recover.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from mcp_server.schemas.evidence import Capability, ExportFigure, Interval
from mcp_server.steps.evaluate.bootstrap import interval, ratio, resample
from mcp_server.steps.evaluate.samples import SuiteSamples
from mcp_server.steps.evaluate.verdict import OVER_BASE, TO_BASE

if TYPE_CHECKING:
    import numpy as np

BASE: Final = "base"
MERGED: Final = "merged"
STANDARD_ERRORS: Final = 2.0


def score_capability(measured: Mapping[str, SuiteSamples], sources: list[str], exports: Sequence[str] = ()) -> Capability:
    """Compare the models in `measured` (label → samples; `base`, `merged` and the names in `sources` have a role) on one suite.
    `exports` are held against the merge and decide nothing.

    The expert is the best source. Raises `ValueError` when `measured` is empty or the models were not asked the same prompts.
    """
    first = _check_same_prompts(measured)
    sign = 1.0 if first.higher_is_better else -1.0
    figures = {label: samples.primary.figure() for label, samples in measured.items()}
    draws = resample({label: samples.primary for label, samples in measured.items()})
    known = {name: value for name in sources if (value := figures.get(name)) is not None}
    expert = max(known, key=lambda name: sign * known[name]) if known else None
    base, merged = figures.get(BASE), figures.get(MERGED)
    intervals: dict[str, Interval | None] = {label: interval(drawn) for label, drawn in draws.items()}
    retention = gain = None
    language = first.primary.kind == "perplexity"  # no skill: it never counts as a gain
    if expert is not None and merged is not None:
        retention = _retention(merged, known[expert], first.higher_is_better)
        if expert in draws and MERGED in draws:
            parts = (draws[MERGED], draws[expert]) if first.higher_is_better else (draws[expert], draws[MERGED])
            intervals["retention"] = interval(ratio(*parts))
    if BASE in draws and MERGED in draws:
        intervals[TO_BASE] = interval(sign * (draws[MERGED] - draws[BASE]))
        if language:
            intervals[OVER_BASE] = interval(ratio(draws[MERGED], draws[BASE]))
    if expert is not None and base is not None and not language and _has_gain(draws, expert, sign):
        if merged is not None:
            gain = (merged - base) / (known[expert] - base)
        if MERGED in draws:
            intervals["gain_recovered"] = interval(ratio(draws[MERGED] - draws[BASE], draws[expert] - draws[BASE]))
    return Capability(
        suite=first.suite,
        metric=first.metric,
        higher_is_better=first.higher_is_better,
        n=len(first.prompt_ids),
        base=base,
        sources=known,
        expert=expert,
        merged=merged,
        exports={label: _export(measured, label, draws) for label in exports if label in measured},
        retention=retention,
        gain_recovered=gain,
        ci={label: found for label, found in intervals.items() if found is not None},
        detail={label: _secondary(samples) for label, samples in measured.items()},
    )


def _export(measured: Mapping[str, SuiteSamples], label: str, draws: Mapping[str, np.ndarray[Any, Any]]) -> ExportFigure:
    """An export's figure against the merge's; nothing but the figure where the merge itself was not measured."""
    figure, whole = measured[label].primary.figure(), measured.get(MERGED)
    merged = whole.primary.figure() if whole is not None else None
    replies = list(zip(measured[label].replies, whole.replies, strict=True)) if whole is not None else []
    return ExportFigure(
        figure=figure,
        change=figure - merged if figure is not None and merged is not None else None,
        ci=interval(draws[label] - draws[MERGED]) if label in draws and MERGED in draws else None,
        same_replies=sum(ours == theirs for ours, theirs in replies) if replies else None,
    )


def expert_gain(measured: Mapping[str, SuiteSamples], expert: str) -> float | None:
    """How far the expert is ahead of the base, in its metric's direction; null unless it is by two standard errors."""
    first = next(iter(measured.values()))
    sign = 1.0 if first.higher_is_better else -1.0
    draws = resample({label: measured[label].primary for label in (BASE, expert) if label in measured})
    if not _has_gain(draws, expert, sign):
        return None
    base, best = measured[BASE].primary.figure(), measured[expert].primary.figure()
    return None if base is None or best is None else sign * (best - base)


def _check_same_prompts(measured: Mapping[str, SuiteSamples]) -> SuiteSamples:
    if not measured:
        raise ValueError("no model was measured")
    first = next(iter(measured.values()))
    for label, samples in measured.items():
        if samples.prompt_ids != first.prompt_ids:
            raise ValueError(f"{label} was asked other prompts than {next(iter(measured))} on {first.suite}")
    return first


def _retention(merged: float, expert: float, higher_is_better: bool) -> float | None:
    """merged ÷ expert, turned round for metrics where less is better, so that 1 is always "as good as the expert"."""
    top, bottom = (merged, expert) if higher_is_better else (expert, merged)
    return top / bottom if abs(bottom) > 1e-12 else None


def _has_gain(draws: Mapping[str, np.ndarray[Any, Any]], expert: str, sign: float) -> bool:
    """True when the expert beats the base by at least two standard errors of the paired difference."""
    if BASE not in draws or expert not in draws:
        return False
    difference = sign * (draws[expert] - draws[BASE])
    return bool(difference.mean() >= STANDARD_ERRORS * difference.std()) and bool(difference.mean() > 1e-9)


def _secondary(samples: SuiteSamples) -> dict[str, float]:
    others = {name: metric.figure() for name, metric in samples.metrics.items() if name != samples.metric}
    return {name: value for name, value in others.items() if value is not None}
