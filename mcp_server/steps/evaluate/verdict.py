"""Passed, adjust, failed or inconclusive, by the thresholds in `rules/thresholds.yaml`.

The point estimates decide and the intervals are quoted: with 24 prompts a share of 0.90 may be 0.75 or 1.0, and the reader must
see that in the same sentence as the verdict.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal

from mcp_server.catalog import threshold
from mcp_server.schemas.base import Frozen
from mcp_server.schemas.evidence import Capability

Outcome = Literal["passed", "adjust", "failed", "inconclusive"]
PERPLEXITY: Final = "perplexity"


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


def perplexity_ratio(capability: Capability) -> float | None:
    """merged ÷ best source; 1.0 is "as good", above is worse."""
    if capability.merged is None or not capability.sources:
        return None
    best = min(capability.sources.values())
    return capability.merged / best if best > 0 else None


def judge(capabilities: Mapping[str, Capability], limits: Thresholds) -> tuple[Outcome, list[str]]:
    """The verdict and its reasons, the worst reason first. Capabilities without an expert's gain are reported, never counted."""
    failed: list[str] = []
    adjust: list[str] = []
    fine: list[str] = []
    for name, capability in capabilities.items():
        if capability.metric == PERPLEXITY or capability.metric.endswith("_perplexity"):
            _judge_perplexity(name, capability, limits, failed, adjust, fine)
        else:
            _judge_capability(name, capability, limits, failed, adjust, fine)
    reasons = failed + adjust + fine
    if failed:
        return "failed", reasons
    if adjust:
        return "adjust", reasons
    if fine:
        return "passed", reasons
    return "inconclusive", ["no capability was measured on base, a source that is better than it, and the merge"]


def _judge_perplexity(
    name: str, capability: Capability, limits: Thresholds, failed: list[str], adjust: list[str], fine: list[str]
) -> None:
    ratio = perplexity_ratio(capability)
    if ratio is None:
        return
    text = f"{name}: {capability.merged:.2f}, {ratio:.2f} times the best source's {min(capability.sources.values()):.2f}"
    if ratio > limits.perplexity_failed:
        failed.append(f"{text}; above {limits.perplexity_failed:g} the merge counts as failed")
    elif ratio > limits.perplexity_adjust:
        adjust.append(f"{text}; above {limits.perplexity_adjust:g} the recipe needs adjusting")
    else:
        fine.append(text)


def _judge_capability(
    name: str, capability: Capability, limits: Thresholds, failed: list[str], adjust: list[str], fine: list[str]
) -> None:
    if capability.target is not None:
        _judge_by_target(name, capability, capability.target, adjust, fine)
        return
    retention, gain = capability.retention, capability.gain_recovered
    if retention is None or gain is None:
        return
    text = (
        f"{name}: {capability.merged:.3f} against {capability.expert}'s {capability.sources[capability.expert or '']:.3f} "
        f"(retention {retention:.2f}, gain recovered {gain:.2f}{_quoted(capability, 'gain_recovered')}, n={capability.n})"
    )
    if retention < limits.retention_failed:
        failed.append(f"{text}; below {limits.retention_failed:g} of the expert the merge counts as failed")
    elif retention < limits.retention_adjust or gain < limits.gain_recovered_target:
        adjust.append(f"{text}; the targets are retention {limits.retention_adjust:g}, gain {limits.gain_recovered_target:g}")
    else:
        fine.append(text)


def _judge_by_target(name: str, capability: Capability, target: float, adjust: list[str], fine: list[str]) -> None:
    """What takes several sources at once has no expert; keeping up with the best of them means little."""
    if capability.merged is None:
        return
    best = max(capability.sources.values(), default=None)
    beside = "" if best is None else f" (the best source alone {best:.3f})"
    found = f"{capability.merged:.3f}{_quoted(capability, 'merged')}"
    text = f"{name}: {found}{beside}, n={capability.n}; the suite asks for {target:g}"
    (fine if capability.merged >= target else adjust).append(text)


def _quoted(capability: Capability, what: str) -> str:
    found = capability.ci.get(what)
    return f", 95 % interval {found.low:.2f} to {found.high:.2f}" if found else ""
