"""Samples of all models on all suites → one `Evaluation`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mcp_server.formats.lineage import Tried
from mcp_server.formats.suites import Suite
from mcp_server.schemas.evidence import Capability, Evaluation
from mcp_server.steps.evaluate.capability import BASE, score_capability
from mcp_server.steps.evaluate.cross import CrossContext, Detector, cross_context
from mcp_server.steps.evaluate.samples import SuiteSamples
from mcp_server.steps.evaluate.suggest import suggest_next
from mcp_server.steps.evaluate.verdict import Thresholds, is_perplexity, judge, load_thresholds, perplexity_ratio, prompts_needed


@dataclass(frozen=True)
class Measured:
    """Everything that was measured. `samples[suite][label]`; `base`, `merged` and the names in `sources` have a role."""

    suites: Mapping[str, Suite]
    samples: Mapping[str, Mapping[str, SuiteSamples]]
    sources: list[str]
    exports: list[str] = field(default_factory=list)
    behaviours: Mapping[str, Detector] = field(default_factory=dict)
    cross: bool = False
    tried: Tried = field(default_factory=Tried)


def assemble(measured: Measured, limits: Thresholds | None = None) -> Evaluation:
    """Score, judge, and suggest the next try."""
    limits = limits or load_thresholds()
    scored = {
        suite: _with_target(score_capability(by, measured.sources, measured.exports), measured.suites[suite].target)
        for suite, by in measured.samples.items()
        if by
    }
    names = _names(measured.suites)
    capabilities = {names[suite]: capability for suite, capability in scored.items()}
    cross = _cross(measured, scored) if measured.cross else None
    verdict, why = judge(capabilities, limits)
    ratios = [r for c in capabilities.values() if is_perplexity(c) and (r := perplexity_ratio(c)) is not None]
    needed = prompts_needed(capabilities, limits)
    return Evaluation(
        capabilities=capabilities,
        cross_context=cross.rates if cross else {},
        cross_context_ci=cross.intervals if cross else {},
        own_context=cross.own if cross else {},
        perplexity_ratio=max(ratios, default=None),
        verdict=verdict,
        why=why,
        prompts_needed=needed,
        next=suggest_next(verdict, capabilities, limits, measured.tried, cross, needed),
        tables=_tables(measured.samples),
    )


def _with_target(capability: Capability, target: float | None) -> Capability:
    """Where the suite sets a target no source is the measure, so there is no retention and no gain."""
    if target is None:
        return capability
    ci = {name: span for name, span in capability.ci.items() if name not in ("retention", "gain_recovered")}
    return capability.model_copy(update={"target": target, "retention": None, "gain_recovered": None, "ci": ci})


def _names(suites: Mapping[str, Suite]) -> dict[str, str]:
    """suite → the name its capability goes by: the capability, or the suite where two suites share one."""
    shared = Counter(suite.capability or suite.name for suite in suites.values())
    return {
        name: suite.capability if suite.capability and shared[suite.capability] == 1 else name for name, suite in suites.items()
    }


def _cross(measured: Measured, scored: Mapping[str, Capability]) -> CrossContext:
    """A source's own context is the suite with a detector on which it is the best of the sources and gains most on the base."""
    own: dict[str, str] = {}
    for suite in measured.behaviours:
        capability = scored.get(suite)
        if capability is not None and capability.expert is not None:
            own.setdefault(capability.expert, suite)
    replies = {
        label: {suite: by[label].replies for suite, by in measured.samples.items() if label in by and by[label].replies}
        for label in [BASE, *measured.sources]
    }
    return cross_context(replies, own, measured.behaviours)


def _tables(samples: Mapping[str, Mapping[str, SuiteSamples]]) -> dict[str, dict[str, Any]]:
    """Confusion counts of suites whose samples are labelled `expected` and `chosen`: suite → label → expected → chosen → n."""
    found: dict[str, dict[str, Any]] = {}
    for suite, by in samples.items():
        for label, one in by.items():
            expected, chosen = one.tables.get("expected"), one.tables.get("chosen")
            if expected and chosen:
                counts: dict[str, Counter[str]] = {}
                for wanted, got in zip(expected, chosen, strict=True):
                    counts.setdefault(str(wanted), Counter())[str(got)] += 1
                found.setdefault(suite, {})[label] = {wanted: dict(got) for wanted, got in counts.items()}
    return found
