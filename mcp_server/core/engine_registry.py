"""The catalogue held against the installed mergekit: methods, inputs, bases, parameters, defaults, each difference one finding.

A new mergekit release shows up here as a finding, and not as a wrong recipe somewhere else.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mcp_server.core.catalog.models import Parameter, Strategy
from mcp_server.core.errors import did_you_mean
from mcp_server.core.models.check import CheckFinding

_BASE = {"required": "required", "one_of_the_sources": "required", "optional": "optional", "ignored": "ignored"}


def differences(strategies: dict[str, Strategy], registry: dict[str, Any]) -> list[CheckFinding]:
    """Every difference between rules/strategies and `registry` (what mcp_server.workers.registry wrote)."""
    version, methods = registry["mergekit"], registry["methods"]
    plain = {name: strategy for name, strategy in strategies.items() if strategy.runner == "mergekit-yaml"}
    findings = [
        _finding(name, f"mergekit {version} has the method {name!r}, the catalogue does not", "add the strategy")
        for name in sorted(methods.keys() - {strategy.merge_method for strategy in plain.values()})
    ]
    for name, strategy in sorted(plain.items()):
        if strategy.merge_method not in methods:
            text = f"mergekit {version} has no method {strategy.merge_method!r}.{did_you_mean(strategy.merge_method, methods)}"
            findings.append(_finding(name, text, "remove the strategy, or set its method or runner"))
            continue
        findings += [_finding(name, text, "follow mergekit") for text in _method(strategy, methods[strategy.merge_method])]
    for name, strategy in strategies.items():
        if strategy.runner == "mergekit-moe":
            parameters = {p["name"]: p for p in registry["moe"]}
            findings += [
                _finding(name, text, "follow mergekit-moe") for p in strategy.parameters for text in _parameter(p, parameters)
            ]
        if strategy.checked_against != f"mergekit {version}":
            text = f"it was checked against {strategy.checked_against}, mergekit {version} is installed"
            findings.append(_finding(name, text, f"check it, then write `checked_against: mergekit {version}`"))
    return findings


def _method(strategy: Strategy, method: dict[str, Any]) -> Iterator[str]:
    inputs, base = strategy.inputs, _BASE[strategy.inputs.base]
    if base != method["base"]:
        yield f"inputs.base is {strategy.inputs.base} here, {method['base']} in mergekit"
    # mergekit counts the base among min/max_inputs where it is required; the catalogue counts the sources that a plan names.
    apart = 1 if inputs.base == "required" else 0
    low = max(method["min_inputs"] - apart, method["min_non_base"] or 0)
    if inputs.min < low:
        yield f"inputs.min is {inputs.min} here, mergekit wants {low}"
    highs = [h for h in (method["max_inputs"] and method["max_inputs"] - apart, method["max_non_base"]) if h]
    # passthrough's maximum is per slice, not per recipe.
    if highs and strategy.id != "passthrough" and inputs.max != min(highs):
        yield f"inputs.max is {inputs.max} here, {min(highs)} in mergekit"
    theirs = {parameter["name"]: parameter for parameter in method["parameters"]}
    for parameter in strategy.parameters:
        yield from _parameter(parameter, theirs)
    if strategy.method:
        return  # a preset may leave parameters at mergekit's defaults
    for name in sorted(theirs.keys() - {parameter.name for parameter in strategy.parameters}):
        yield f"mergekit has the parameter {name!r}, the catalogue does not"


def _parameter(parameter: Parameter, theirs: dict[str, Any]) -> Iterator[str]:
    other = theirs.get(parameter.name)
    if other is None:
        yield f"mergekit has no parameter {parameter.name!r}"
        return
    for field in ("scope", "type", "required", "default"):
        mine, its = getattr(parameter, field), other[field]
        if mine != its:
            yield f"{parameter.name}.{field} is {mine!r} here, {its!r} in mergekit"


def _finding(name: str, message: str, fix: str) -> CheckFinding:
    return CheckFinding(where=f"rules/strategies/{name}.yaml", message=message, fix=fix)
