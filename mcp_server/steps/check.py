"""`model-merging check`: read every knowledge file, render every template, compare with the golden files and the engine.

Everything wrong is reported at once, in words that say which file to open and what to write. Nothing here raises for what a
student's file says.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mcp_server.catalog.loader import Loaded, read_rules
from mcp_server.catalog.models import Parameter, Strategy
from mcp_server.catalog.signals import SIGNALS
from mcp_server.errors import MergingError, did_you_mean
from mcp_server.formats.suites import list_suites
from mcp_server.schemas.validation import CheckFinding, CheckResult
from mcp_server.steps.render import render_strategy
from mcp_server.system import paths

SKILL = ".claude/skills/extend-model-merging/SKILL.md"
NOT_SUITES = frozenset({"cross_context"})
"""Evaluations that a plan may ask for and that are no suite: `evaluate --cross` runs the suites of all sources."""


def check_catalogue(
    *, registry: dict[str, Any] | None = None, rules: Path | None = None, templates: Path | None = None
) -> CheckResult:
    """Check the knowledge files of this installation, or of the folders named.

    `registry` is what the installed mergekit says about itself (the answer of the worker `registry`); with it, the catalogue is
    compared with the engine too.
    """
    templates = templates or paths.templates_dir()
    loaded = read_rules(rules or paths.RULES)
    findings = [CheckFinding(where=f"rules/{file}", message=text, fix=_fix(text)) for file, text in loaded.problems]
    findings += _templates(loaded, templates)
    findings += _golden(loaded, templates)
    findings += _decision(loaded)
    if registry:
        findings += differences(loaded.strategies, registry)
    version = registry["mergekit"] if registry else None
    return CheckResult(
        ok=not findings, findings=findings, strategies=len(loaded.strategies), rules=len(loaded.rules), mergekit=version
    )


def _templates(loaded: Loaded, templates: Path) -> Iterator[CheckFinding]:
    """Each strategy has a template that renders what it means; each template has a strategy."""
    found = {path.name.removesuffix(".yaml.j2") for path in templates.glob("*.yaml.j2")}
    for name in sorted(found - loaded.strategy_files):
        hint = did_you_mean(name, loaded.strategy_files - found)
        yield CheckFinding(
            where=f"templates/{name}.yaml.j2",
            message=f"there is no strategy {name!r} for this template.{hint}",
            fix=f"write rules/strategies/{name}.yaml, or rename the template",
        )
    for name in loaded.strategies:
        if name not in found:
            yield CheckFinding(
                where=f"rules/strategies/{name}.yaml",
                message="it has no template",
                fix=f"write templates/{name}.yaml.j2; {SKILL} has a pattern",
            )
            continue
        try:
            render_strategy(name, templates, loaded.strategies)
        except MergingError as error:
            yield CheckFinding(where=f"templates/{name}.yaml.j2", message=error.message, fix=error.next_step)


def _golden(loaded: Loaded, templates: Path) -> Iterator[CheckFinding]:
    """In a clone, the golden file of every strategy holds what its template renders now."""
    folder = templates.parent / "tests" / "golden"
    if not folder.is_dir():
        return
    for name in sorted({path.stem for path in folder.glob("*.yml")} - loaded.strategy_files):
        yield CheckFinding(where=f"tests/golden/{name}.yml", message=f"there is no strategy {name!r}", fix="remove or rename it")
    for name, strategy in loaded.strategies.items():
        golden = folder / f"{name}.yml"
        write = f"look at the recipe, then: python -m mcp_server.docgen golden {name} > tests/golden/{name}.yml"
        if not golden.is_file():
            yield CheckFinding(where=f"rules/strategies/{name}.yaml", message="it has no golden file", fix=write)
            continue
        text = _rendered(strategy, templates, loaded.strategies)
        if text is not None and text != golden.read_text(encoding="utf-8"):
            yield CheckFinding(
                where=f"tests/golden/{name}.yml",
                message="the template renders something else now",
                fix=f"if that is right: {write}",
            )


def _rendered(strategy: Strategy, templates: Path, strategies: dict[str, Strategy]) -> str | None:
    try:
        return render_strategy(strategy.id, templates, strategies).recipe
    except MergingError:
        return None  # reported by _templates


def _decision(loaded: Loaded) -> Iterator[CheckFinding]:
    """The table always decides, asks for suites that exist, and reads every signal that is computed."""
    where = "rules/decision.yaml"
    for stage in ("verdict", "strategy"):
        rules = [rule for rule in loaded.rules if rule.stage == stage]
        if rules and rules[-1].when:
            yield CheckFinding(
                where=where,
                message=f"the last {stage} rule ({rules[-1].id!r}) has conditions, so the table may not decide",
                fix="end the stage with a rule without `when`",
            )
        for rule in rules[:-1]:
            if not rule.when:
                yield CheckFinding(
                    where=where,
                    message=f"rule {rule.id!r} has no conditions, so no {stage} rule after it is read",
                    fix="move it to the end",
                )
    suites = list_suites()
    for rule in loaded.rules:
        if rule.evaluate and rule.evaluate.suite not in suites and rule.evaluate.suite not in NOT_SUITES:
            name = rule.evaluate.suite
            yield CheckFinding(
                where=where,
                message=f"rule {rule.id!r} asks for the suite {name!r}, which does not exist.{did_you_mean(name, suites)}",
                fix=f"known: {', '.join(sorted(suites))}",
            )
    read = {condition.signal for rule in loaded.rules for condition in rule.when} | {q.signal for q in loaded.questions}
    for name in sorted(SIGNALS.keys() - read):
        yield CheckFinding(where=where, message=f"no rule and no question reads the signal {name!r}", fix="read it, or remove it")


def _fix(message: str) -> str:
    if match := re.search(r"the field '([\w.]+)' is missing", message):
        return f"add `{match.group(1)}: …`; {SKILL} lists the fields"
    return f"correct the file; {SKILL} shows one whole"


_BASE = {"required": "required", "one_of_the_sources": "required", "optional": "optional", "ignored": "ignored"}


def differences(strategies: dict[str, Strategy], registry: dict[str, Any]) -> list[CheckFinding]:
    """Every difference between rules/strategies and `registry` (what mcp_server.workers.mergekit_registry wrote)."""
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
    for name, least, most in (("accepts", "min_inputs", "max_inputs"), ("accepts_beside_base", "min_non_base", "max_non_base")):
        if getattr(inputs, name) != (limits := (method[least] or 0, method[most])):
            yield f"inputs.{name} is {list(getattr(inputs, name))} here, {list(limits)} in mergekit"
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
