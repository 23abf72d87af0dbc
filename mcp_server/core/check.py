"""`model-merging check`: read every knowledge file, render every template, compare with the golden files and the engine.

Everything wrong is reported at once, in words that say which file to open and what to write. Nothing here raises for what a
student's file says.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mcp_server.core import paths
from mcp_server.core.catalog.loader import Loaded, read_rules
from mcp_server.core.catalog.models import Strategy
from mcp_server.core.catalog.signals import SIGNALS
from mcp_server.core.engine_registry import differences
from mcp_server.core.errors import MergingError, did_you_mean
from mcp_server.core.models.check import CheckFinding, CheckResult
from mcp_server.core.render import render_strategy
from mcp_server.core.suites import list_suites

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
