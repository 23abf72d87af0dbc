"""Signals about what the user wants and what there is to do it with."""

from __future__ import annotations

from typing import Any

from mcp_server.catalog.signals.bases import has_base
from mcp_server.catalog.signals.registry import signal
from mcp_server.catalog.signals.sources import trained
from mcp_server.schemas.scenario import Favour, Scenario


def _constraint(scenario: Scenario, field: str) -> Any:
    return getattr(scenario.constraints, field) if scenario.constraints else None


@signal
def goal(scenario: Scenario) -> str | None:
    """What the user is after; 'favour' when one source is to be favoured."""
    return "favour" if isinstance(scenario.goal, Favour) else scenario.goal


def favoured(scenario: Scenario) -> str | None:
    """The source to favour."""
    return scenario.goal.favour if isinstance(scenario.goal, Favour) else None


@signal
def asked_strategy(scenario: Scenario) -> str | None:
    """The strategy that the user asked for by name."""
    return scenario.strategy


@signal
def asked_problem(scenario: Scenario) -> str | None:
    """Why the strategy that the user asked for cannot take these sources; unknown when nothing was asked or it fits."""
    if scenario.strategy is None:
        return None
    from mcp_server.catalog import strategy

    inputs, count, base = strategy(scenario.strategy).inputs, len(trained(scenario)), has_base(scenario)
    if inputs.base == "one_of_the_sources" and base:
        count = max(count, 2)
    if inputs.max is not None and count > inputs.max:
        return f"it takes {inputs.max} sources at most, the scenario has {count}"
    if count < inputs.min:
        return f"it takes {inputs.min} sources at least, the scenario has {count}"
    if inputs.base == "required" and base is not True:
        return "it needs the base that all sources were trained from" + (", and it is not known" if base is None else "")
    return None


@signal
def ram_gib(scenario: Scenario) -> float | None:
    """Memory that the merge may use, in GiB."""
    value = _constraint(scenario, "ram_gib")
    return None if value is None else float(value)


@signal
def compute(scenario: Scenario) -> str | None:
    """Compute that is there for training: none, limited or ample."""
    return _text(_constraint(scenario, "compute"))


@signal
def quality(scenario: Scenario) -> str | None:
    """Whether quality may be tuned later or is critical."""
    return _text(_constraint(scenario, "quality"))


@signal
def training_data(scenario: Scenario) -> str | None:
    """Whether the sources' training data is still available, or gone."""
    return _text(_constraint(scenario, "training_data"))


@signal
def factors_for_retraining(scenario: Scenario) -> int:
    """How many of four soft factors favour retraining: ample compute, slow iteration, critical quality, one-time use."""
    return sum(
        (
            compute(scenario) == "ample",
            _constraint(scenario, "iteration") == "slow",
            quality(scenario) == "critical",
            _constraint(scenario, "reuse") == "one_time",
        )
    )


def _text(value: Any) -> str | None:
    return None if value is None else str(value)
