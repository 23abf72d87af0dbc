"""Merge methods as the linter needs them, read from the catalogue (rules/strategies): no second table of the same facts."""

from __future__ import annotations

from functools import cache

from mcp_server.catalog import Strategy, load
from mcp_server.catalog.models import Parameter


@cache
def merge_methods() -> dict[str, Strategy]:
    """The strategies that are a `merge_method` of mergekit-yaml, by name; a preset of another method is none."""
    known = load().strategies.items()
    return {name: strategy for name, strategy in known if strategy.runner == "mergekit-yaml" and strategy.method is None}


@cache
def parameter_names() -> frozenset[str]:
    """Every parameter name of every method."""
    return frozenset(parameter.name for strategy in merge_methods().values() for parameter in strategy.parameters)


def shared_parameters(strategy: Strategy) -> list[Parameter]:
    return [parameter for parameter in strategy.parameters if parameter.scope == "shared"]


def source_parameters(strategy: Strategy) -> list[Parameter]:
    return [parameter for parameter in strategy.parameters if parameter.scope == "source"]


def needs_base(strategy: Strategy) -> bool:
    return strategy.inputs.base in ("required", "one_of_the_sources")


def ignores_base(strategy: Strategy) -> bool:
    """Such a method treats a base like any other input, whatever its name says."""
    return strategy.inputs.base == "ignored"
