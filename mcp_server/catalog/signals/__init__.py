"""Signals: the facts that rules may read, each derived from the scenario by one named function.

A function returns a value, or None when the scenario does not say: unknown stays unknown. A rule that names a signal missing here
is refused at load, and a message can only quote signals from here, so no advice rests on something that nobody computed.
"""

from __future__ import annotations

from mcp_server.catalog.signals.bases import has_base
from mcp_server.catalog.signals.goals import favoured
from mcp_server.catalog.signals.observed import SeenScenario
from mcp_server.catalog.signals.registry import SIGNALS, Facts
from mcp_server.catalog.signals.relations import apart, widest_cosine
from mcp_server.catalog.signals.sources import cross_context_rate, examples_known, is_base, norm_ratio, source_names, trained
from mcp_server.schemas.scenario import Scenario

__all__ = [
    "SIGNALS",
    "Facts",
    "SeenScenario",
    "apart",
    "cross_context_rate",
    "examples_known",
    "favoured",
    "has_base",
    "is_base",
    "norm_ratio",
    "read_facts",
    "source_names",
    "trained",
    "widest_cosine",
]


def read_facts(scenario: Scenario) -> Facts:
    """Every signal's value for this scenario; None is unknown."""
    return {name: function(scenario) for name, function in SIGNALS.items()}
