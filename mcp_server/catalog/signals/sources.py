"""Signals about the sources themselves: how many, whether they work, how large they are beside each other."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from mcp_server.catalog.signals.registry import signal
from mcp_server.schemas.scenario import Scenario, ScenarioSource

_VOICE: Final = re.compile(r"persona|voice|tone|style|character|chat", re.IGNORECASE)
_TOOLS: Final = re.compile(r"json|tool|function|\bapi\b|agent|structured", re.IGNORECASE)


def source_names(scenario: Scenario) -> list[str]:
    """Names of the sources in order: the given one, else the last part of the ref, else `source1`, …; always distinct."""
    names: list[str] = []
    for number, source in enumerate(scenario.sources or [], 1):
        last = re.sub(r"[^\w.-]+", "_", (source.ref or "").rstrip("/").rpartition("/")[2]).strip("._")
        name = source.name or last or f"source{number}"
        names.append(name if name not in names else f"{name}_{number}")
    return names


def is_base(scenario: Scenario, source: ScenarioSource) -> bool:
    """True when a listed source is the base itself: its task vector is zero. A deeper model has no task vectors, only layers."""
    return (
        scenario.goal != "deeper_model"
        and bool(scenario.base_model)
        and source.ref == scenario.base_model
        and source.kind != "lora"
    )


def trained(scenario: Scenario) -> list[tuple[str, ScenarioSource]]:
    """The sources that carry something learnt, by name: all but the base itself."""
    pairs = zip(source_names(scenario), scenario.sources or [], strict=True)
    return [(name, source) for name, source in pairs if not is_base(scenario, source)]


def _ratio(values: Iterable[float | None]) -> float | None:
    known = [float(v) for v in values if v is not None]
    if len(known) < 2 or min(known) <= 0:
        return None
    return max(known) / min(known)


@signal
def sources_known(scenario: Scenario) -> bool | None:
    """Whether the scenario says which sources there are."""
    return None if scenario.sources is None else True


@signal
def source_count(scenario: Scenario) -> int | None:
    """How many trained sources there are (the base itself does not count)."""
    return None if scenario.sources is None else len(trained(scenario))


@signal
def base_is_listed(scenario: Scenario) -> bool:
    """Whether the base itself is listed as a source."""
    return len(trained(scenario)) < len(scenario.sources or [])


def _with_status(scenario: Scenario, status: str) -> str | None:
    return ", ".join(name for name, source in trained(scenario) if source.status == status) or None


@signal
def missing_sources(scenario: Scenario) -> str | None:
    """Names of the sources that do not exist yet."""
    return _with_status(scenario, "missing")


@signal
def broken_sources(scenario: Scenario) -> str | None:
    """Names of the sources that are known not to work."""
    return _with_status(scenario, "broken")


@signal
def unevaluated_sources(scenario: Scenario) -> str | None:
    """Names of the sources that nobody has evaluated."""
    return _with_status(scenario, "unevaluated")


@signal
def source_status(scenario: Scenario) -> str | None:
    """The worst status of all sources: missing, broken, unevaluated, works; unknown when one is not given."""
    found = [s.status or ("works" if s.scores else None) for _, s in trained(scenario)]
    for status in ("missing", "broken", "unevaluated"):
        if status in found:
            return status
    return "works" if found and all(found) else None


@signal
def kind(scenario: Scenario) -> str | None:
    """'lora' when every source is an adapter, 'full' when none is, 'mixed' otherwise; unknown when one is not told."""
    kinds = {s.kind or ("lora" if s.rank is not None else None) for _, s in trained(scenario)}
    if not kinds or None in kinds:
        return None
    return kinds.pop() if len(kinds) == 1 else "mixed"


@signal
def examples_ratio(scenario: Scenario) -> float | None:
    """Largest over smallest number of training examples."""
    return _ratio(s.training_examples for _, s in trained(scenario))


@signal
def examples_known(scenario: Scenario) -> bool | None:
    """Whether every source says how many examples it was trained on."""
    found = [s.training_examples for _, s in trained(scenario)]
    return all(v is not None and v > 0 for v in found) if found else None


@signal
def norm_ratio(scenario: Scenario) -> float | None:
    """Largest over smallest measured norm of the task vectors."""
    return _ratio(s.norm for _, s in trained(scenario))


@signal
def rank_ratio(scenario: Scenario) -> float | None:
    """Largest over smallest LoRA rank."""
    return _ratio(s.rank for _, s in trained(scenario))


@signal
def has_voice(scenario: Scenario) -> bool:
    """Whether a source adds a voice or persona."""
    return any(_VOICE.search(f"{name} {s.capability or ''}") for name, s in trained(scenario))


@signal
def has_tools(scenario: Scenario) -> bool:
    """Whether a source adds tool calls or strict JSON."""
    return any(_TOOLS.search(f"{name} {s.capability or ''}") for name, s in trained(scenario))


@signal
def has_prompts(scenario: Scenario) -> bool | None:
    """Whether every source says which prompts belong to it (what a mixture of experts routes by)."""
    found = [bool(s.prompts) or bool(s.capability) for _, s in trained(scenario)]
    return all(found) if found else None


@signal
def cross_context_rate(scenario: Scenario) -> float | None:
    """The highest measured rate at which a source breaks into its own behaviour in a context that is not its own."""
    own = scenario.own_context or {}
    rates = (scenario.cross_context or {}).items()
    return max((rate for source, row in rates for context, rate in row.items() if context != own.get(source)), default=None)


@signal
def rl_sources(scenario: Scenario) -> str | None:
    """Sources trained by reinforcement, by name."""
    return ", ".join(name for name, source in trained(scenario) if source.training == "rl") or None
