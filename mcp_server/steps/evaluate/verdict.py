"""Passed, adjust, failed or inconclusive, by the thresholds in `rules/thresholds.yaml`.

A line is passed or missed only when the whole 95 % interval lies on one side of it: with 24 prompts a share of 0.90 may be 0.75
or 1.0. Where the interval straddles the line the capability is undecided, and the reason says about how many prompts would do.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final, Literal

from mcp_server.catalog import threshold
from mcp_server.schemas.base import Frozen
from mcp_server.schemas.evidence import Capability, Interval

Outcome = Literal["passed", "adjust", "failed", "inconclusive"]
Level = Literal["failed", "adjust", "undecided", "fine", "open"]
"""Of one capability. `open`: reported, and decides nothing."""
PERPLEXITY: Final = "perplexity"
TO_BASE: Final = "difference_to_base"
"""Key of an interval: merged − base in the metric's direction, so that below zero is worse."""
OVER_BASE: Final = "ratio_to_base"
MOST_PROMPTS: Final = 100_000


class Thresholds(Frozen):
    """The named figures of `rules/thresholds.yaml` that an evaluation reads; why each has its value stands there."""

    perplexity_adjust: float
    perplexity_failed: float
    retention_adjust: float
    retention_failed: float
    gain_recovered_target: float
    cross_context_leak: float


def load_thresholds() -> Thresholds:
    """Read the figures by name from the catalogue."""
    return Thresholds(**{name: threshold(name) for name in Thresholds.model_fields})


def is_perplexity(capability: Capability) -> bool:
    """A measure of language in general: it can be spoilt, and is no skill that a source adds."""
    return capability.metric == PERPLEXITY or capability.metric.endswith("_perplexity")


def perplexity_ratio(capability: Capability) -> float | None:
    """merged ÷ best source, or ÷ base where there is no source; 1.0 is "as good", above is worse."""
    best = min(capability.sources.values(), default=capability.base)
    if capability.merged is None or best is None:
        return None
    return capability.merged / best if best > 0 else None


Side = Literal["below", "above", "undecided"]


def with_width(value: float, span: Interval, count: int | None) -> Interval:
    """An interval of no width, where all of `count` prompts agreed, is that of the rule of three: 3 ÷ count to either side."""
    return Interval(low=value - 3 / count, high=value + 3 / count) if count and span.high - span.low < 1e-12 else span


def side(value: float, span: Interval | None, line: float, count: int | None = None) -> Side:
    """On which side of a line the truth lies: the whole 95 % interval must be there. Without one the value alone decides."""
    if span is None:
        return "below" if value < line else "above"
    span = with_width(value, span, count)
    return "below" if span.high < line else "above" if span.low >= line else "undecided"


def judge(capabilities: Mapping[str, Capability], limits: Thresholds) -> tuple[Outcome, list[str]]:
    """The verdict and its reasons, the worst reason first.

    What the intervals leave open is inconclusive unless another capability decides. Where no source is better than the base, the
    base is the reference: a merge can be worse than it, and with sources there it is then reported, not counted as kept.
    """
    said: dict[Level, list[str]] = {"failed": [], "adjust": [], "undecided": [], "fine": [], "open": []}
    for name, capability in capabilities.items():
        if capability.merged is None:
            continue
        level, text = _judged(name, capability, limits)
        if level is not None:
            said[level].append(text)
    reasons = [text for texts in said.values() for text in texts]
    if said["failed"]:
        return "failed", reasons
    if said["adjust"]:
        return "adjust", reasons
    if said["undecided"]:
        return "inconclusive", reasons
    if said["fine"]:
        return "passed", reasons
    return "inconclusive", [*reasons, "no capability was measured on base, a source that is better than it, and the merge"]


def prompts_needed(capabilities: Mapping[str, Capability], limits: Thresholds) -> dict[str, int]:
    """capability → about how many prompts would decide it, for those that the intervals leave open."""
    return {
        name: _needed(capability, limits)
        for name, capability in capabilities.items()
        if capability.merged is not None and _judged(name, capability, limits)[0] == "undecided"
    }


def _judged(name: str, capability: Capability, limits: Thresholds) -> tuple[Level | None, str]:
    if is_perplexity(capability):
        return _judge_perplexity(name, capability, limits)
    if capability.target is not None:
        return _judge_by_target(name, capability, capability.target, limits)
    if capability.retention is not None and capability.gain_recovered is not None:
        return _judge_skill(name, capability, limits)
    return _judge_by_base(name, capability, limits)


def _judge_perplexity(name: str, capability: Capability, limits: Thresholds) -> tuple[Level | None, str]:
    ratio = perplexity_ratio(capability)
    if ratio is None:
        return None, ""
    span = _ratio_span(capability)
    beside = (
        f"the best source's {min(capability.sources.values()):.2f}" if capability.sources else f"the base's {capability.base:.2f}"
    )
    text = f"{name}: {capability.merged:.2f}, {ratio:.2f} times {beside}{_interval(span)}"
    if side(ratio, span, limits.perplexity_failed) == "above" and ratio > limits.perplexity_failed:
        return "failed", f"{text}; above {limits.perplexity_failed:g} the merge counts as failed"
    where = side(ratio, span, limits.perplexity_adjust)
    if where == "above" and ratio > limits.perplexity_adjust:
        return "adjust", f"{text}; above {limits.perplexity_adjust:g} the recipe needs adjusting"
    if where == "undecided":
        return "undecided", f"{text}; {_open(capability, limits)}"
    return "fine", text


def _judge_skill(name: str, capability: Capability, limits: Thresholds) -> tuple[Level | None, str]:
    retention, gain = capability.retention or 0.0, capability.gain_recovered or 0.0
    text = (
        f"{name}: {capability.merged:.3f} against {capability.expert}'s {capability.sources[capability.expert or '']:.3f} "
        f"(retention {retention:.2f}, gain recovered {gain:.2f}{_quoted(capability, 'gain_recovered')}, n={capability.n})"
    )
    kept, won = capability.ci.get("retention"), capability.ci.get("gain_recovered")
    if side(retention, kept, limits.retention_failed, capability.n) == "below":
        return "failed", f"{text}; below {limits.retention_failed:g} of the expert the merge counts as failed"
    sides = {
        side(retention, kept, limits.retention_adjust, capability.n),
        side(gain, won, limits.gain_recovered_target, capability.n),
    }
    if "below" in sides:
        return "adjust", f"{text}; the targets are retention {limits.retention_adjust:g}, gain {limits.gain_recovered_target:g}"
    if "undecided" in sides:
        return "undecided", f"{text}; {_open(capability, limits)}"
    return "fine", text


def _judge_by_target(name: str, capability: Capability, target: float, limits: Thresholds) -> tuple[Level | None, str]:
    """What takes several sources at once has no expert; keeping up with the best of them means little."""
    merged = capability.merged or 0.0
    best = max(capability.sources.values(), default=None)
    beside = "" if best is None else f" (the best source alone {best:.3f})"
    text = f"{name}: {merged:.3f}{_quoted(capability, 'merged')}{beside}, n={capability.n}; the suite asks for {target:g}"
    where = side(merged, capability.ci.get("merged"), target, capability.n)
    if where == "undecided":
        return "undecided", f"{text}; {_open(capability, limits)}"
    return ("fine" if where == "above" else "adjust"), text


def _judge_by_base(name: str, capability: Capability, limits: Thresholds) -> tuple[Level | None, str]:
    """No source is better than the base at it. Only a difference whose interval leaves out zero is one."""
    span = capability.ci.get(TO_BASE)
    if capability.base is None or capability.merged is None or span is None:
        return None, ""
    figures = f"{capability.merged:.3f} against the base's {capability.base:.3f}"
    text = f"{name}: {figures} (difference{_interval(span)}, n={capability.n})"
    share = capability.merged / capability.base if capability.higher_is_better and capability.base > 0 else 1.0
    if span.high < 0:
        failed = share < limits.retention_failed
        return ("failed" if failed else "adjust" if share < limits.retention_adjust else "open"), f"{text}; it got worse"
    if capability.sources:
        return "open", f"{text}; no source is better than the base, so there is no gain to keep"
    return "fine", f"{text}; not measurably worse"


def _open(capability: Capability, limits: Thresholds) -> str:
    return f"undecided, which needs about {_needed(capability, limits)} prompts"


def _needed(capability: Capability, limits: Thresholds) -> int:
    """Intervals shrink with the root of n: how large n must be to leave out the nearest line, at most `MOST_PROMPTS`."""
    found: list[tuple[float, Interval | None, tuple[float, ...]]] = []
    if is_perplexity(capability):
        found = [(perplexity_ratio(capability) or 1.0, _ratio_span(capability), (limits.perplexity_adjust,))]
    elif capability.target is not None:
        found = [(capability.merged or 0.0, capability.ci.get("merged"), (capability.target,))]
    else:
        found = [
            (capability.retention or 0.0, capability.ci.get("retention"), (limits.retention_adjust, limits.retention_failed)),
            (capability.gain_recovered or 0.0, capability.ci.get("gain_recovered"), (limits.gain_recovered_target,)),
        ]
    needed = capability.n + 1
    for value, span, lines in found:
        for line in lines:
            if span is None or side(value, span, line, capability.n) != "undecided":
                continue
            away = max(abs(value - line), 1e-3)
            flat = span.high - span.low < 1e-12
            half = (span.high - span.low) / 2
            needed = max(needed, math.ceil(round(3 / away, 6)) if flat else math.ceil(capability.n * (half / away) ** 2))
    return min(needed, MOST_PROMPTS)


def _ratio_span(capability: Capability) -> Interval | None:
    """Of merged ÷ best source, the inverse of the retention; of merged ÷ base where there is no source."""
    if not capability.sources:
        return capability.ci.get(OVER_BASE)
    kept = capability.ci.get("retention")
    return Interval(low=1 / kept.high, high=1 / kept.low) if kept is not None and kept.low > 0 else None


def _quoted(capability: Capability, what: str) -> str:
    return _interval(capability.ci.get(what))


def _interval(span: Interval | None) -> str:
    return f", 95 % interval {span.low:.2f} to {span.high:.2f}" if span else ""
