"""The generated parts of the documents: tables from rules/, examples from templates/, codes from the linter.

A document holds blocks like this one, and `cog -r` fills them in:

    <!-- [[[cog
    from mcp_server import docgen
    docgen.put(docgen.strategy_table())
    ]]] -->
    <!-- [[[end]]] -->

`make lint` runs `cog --check`, so a table that no longer matches its rules fails the build. Every block says which file to edit;
everything outside the blocks is free prose.
"""

from __future__ import annotations

import re
import sys
import types
import typing
from collections.abc import Callable, Iterable
from typing import Any

from mcp_server import catalog
from mcp_server.catalog.models import Condition, Rule, Strategy
from mcp_server.catalog.signals import SIGNALS
from mcp_server.schemas.scenario import Scenario, ScenarioSource
from mcp_server.steps.render import render_strategy
from mcp_server.steps.validate.registry import LintRule, rules
from mcp_server.steps.validate.registry import rules as lint_rules

_WORDS = {
    "is": "is",
    "is_not": "is not",
    "in": "is one of",
    "below": "<",
    "at_most": "≤",
    "above": ">",
    "at_least": "≥",
    "known": "is known",
    "unknown": "is not known",
}


def put(text: str) -> None:
    """Write a block into the document that cog is working on, with empty lines round it."""
    print(f"\n{text}\n")


def strategy_table() -> str:
    """Every strategy: sources, base, when, when not."""
    rows = [
        (f"`{s.id}`", s.idea, _inputs(s), _base(s), "; ".join(s.when), "; ".join(s.when_not))
        for s in sorted(catalog.load().strategies.values(), key=lambda s: s.id)
    ]
    return _marked("rules/strategies/*.yaml", _table(("strategy", "what it does", "sources", "base", "when", "when not"), rows))


def strategy_short_table() -> str:
    """Id, sources, base and first reason: small enough for SKILL.md."""
    rows = [
        (f"`{s.id}`", _inputs(s), _base(s), s.when[0]) for s in sorted(catalog.load().strategies.values(), key=lambda s: s.id)
    ]
    return _marked("rules/strategies/*.yaml", _table(("strategy", "sources", "base", "first reason to use it"), rows))


def strategy_page(strategy_id: str) -> str:
    """One strategy in full: parameters with ranges and advice, departures from its paper, sources, its recipe."""
    s = catalog.strategy(strategy_id)
    rows = [
        (
            f"`{p.name}`",
            "each source" if p.scope == "source" else "whole recipe",
            "required" if p.required else _value(p.default),
            _value(p.start),
            str(p.range or (", ".join(p.choices) if p.choices else "")),
            p.advice,
            p.source,
        )
        for p in s.parameters
    ]
    columns = ("parameter", "set for", "mergekit's default", "a plan starts at", "legal", "advice", "source")
    parts = [s.idea, f"Sources: {_inputs(s)}. Base: {_base(s)}." + (f" {_sentence(s.inputs.note)}" if s.inputs.note else "")]
    parts += [_table(columns, rows)] if rows else ["It has no parameters."]
    parts += [f"Memory: {_cost(s)}."]
    parts += ["Departs from the paper:\n" + _list(s.departs)] if s.departs else []
    parts += ["Use it when:\n" + _list(s.when), "Do not when:\n" + _list(s.when_not)]
    parts += ["Sources:\n" + _list(f"[{c.title}]({c.link})" if c.link else c.title for c in s.sources)]
    parts += [f"Checked against {s.checked_against}.", f"```yaml\n{render_strategy(s.id).recipe}```"]
    return _marked(f"rules/strategies/{s.id}.yaml", "\n\n".join(parts))


def strategy_pages() -> str:
    """Every strategy in full, one section each."""
    return "\n\n".join(f"## {s.title}\n\n{strategy_page(s.id)}" for _, s in sorted(catalog.load().strategies.items()))


def decision_table(stage: str | None = None) -> str:
    """The rules in their order: conditions, what follows, why, source. `stage` limits it to one."""
    rows = [
        (f"`{r.id}`", _conditions(r), _outcome(r), _sentence(r.because), r.source)
        for r in catalog.load().rules
        if stage in (None, r.stage)
    ]
    return _marked("rules/decision.yaml", _table(("rule", "when", "then", "because", "source"), rows))


def threshold_table() -> str:
    """Every number that a rule uses."""
    rows = [(f"`{t.name}`", f"{t.value:g} {t.unit}".strip(), t.why, t.source) for t in catalog.load().thresholds.values()]
    return _marked("rules/thresholds.yaml", _table(("name", "value", "why", "source"), rows))


def question_table() -> str:
    """What is asked when a fact is unknown and its answer would change the plan."""
    rows = [(f"`{q.signal}`", q.ask, q.source) for q in catalog.load().questions]
    return _marked("rules/questions.yaml", _table(("signal", "question", "source"), rows))


def signal_table() -> str:
    """The facts that rules can read."""
    rows = [(f"`{name}`", " ".join((function.__doc__ or "").split())) for name, function in SIGNALS.items()]
    return _marked("mcp_server/catalog/signals/", _table(("signal", "meaning"), rows))


def scenario_table() -> str:
    """The fields of a scenario file."""
    from mcp_server.schemas.scenario import Constraints, PairRelation

    rows = []
    for prefix, model in (
        ("", Scenario),
        ("sources[].", ScenarioSource),
        ("relation(s).", PairRelation),
        ("constraints.", Constraints),
    ):
        for name, field in model.model_fields.items():
            rows.append((f"`{prefix}{name}`", _type(field.annotation), field.description or ""))
    return _marked("mcp_server/schemas/scenario.py", _table(("field", "values", "meaning"), rows))


def rendered_example(strategy_id: str) -> str:
    """A strategy's recipe for the example sources, as a fenced block."""
    return _marked(f"templates/{strategy_id}.yaml.j2", f"```yaml\n{render_strategy(strategy_id).recipe}```")


def golden(strategy_id: str) -> str:
    """The text of a strategy's golden file."""
    return render_strategy(strategy_id).recipe


def validation_codes() -> str:
    """The linter's codes, each with what, why, example and fix."""
    parts = []
    for rule in lint_rules().values():
        fixes = " `--fix` does it." if rule.fixable else ""
        parts.append(
            f"### {rule.code} {rule.title}\n\n*{rule.severity}, found at level: {rule.level}*\n\n{_sentence(rule.what)}\n\n"
            f"**Why it matters.** {_sentence(rule.why)}\n\n**Example**\n\n```yaml\n{rule.example.rstrip()}\n```\n\n"
            f"**Fix.** {_sentence(rule.fix)}{fixes}"
        )
    return _marked("rules/lint.yaml", "\n\n".join(parts))


def validation_table() -> str:
    """The linter's codes on one line each."""
    rows = [(r.code, r.severity, r.title, "yes" if r.fixable else "") for r in lint_rules().values()]
    return _marked("rules/lint.yaml", _table(("code", "severity", "what", "`--fix`"), rows))


def _inputs(strategy: Strategy) -> str:
    low, high = strategy.inputs.min, strategy.inputs.max
    return f"{low} or more" if high is None else str(low) if low == high else f"{low} to {high}"


def _base(strategy: Strategy) -> str:
    return strategy.inputs.base.replace("_", " ")


def _cost(strategy: Strategy) -> str:
    kinds = {
        "streams": "streams block by block",
        "whole_tensor": "needs the largest tensor of every source at once",
        "copies": "copies tensors, so it needs next to none",
    }
    return kinds[strategy.cost.kind] + (f"; {strategy.cost.note}" if strategy.cost.note else "")


def _conditions(rule: Rule) -> str:
    return " and ".join(_condition(c) for c in rule.when) or "always"


def _condition(condition: Condition) -> str:
    if condition.op in ("known", "unknown"):
        return f"`{condition.signal}` {_WORDS[condition.op]}"
    value = condition.value
    if isinstance(value, dict):
        threshold = catalog.load().thresholds[value["threshold"]]
        return f"`{condition.signal}` {_WORDS[condition.op]} {threshold.value:g}"
    return f"`{condition.signal}` {_WORDS[condition.op]} {_value(value)}"


def _outcome(rule: Rule) -> str:
    if rule.verdict:
        return f"verdict **{rule.verdict}**"
    if rule.choose:
        return f"strategy **{rule.choose}**"
    if rule.runner_up:
        return f"then try **{rule.runner_up.strategy}**"
    if rule.evaluate:
        return f"measure **{rule.evaluate.suite}** {rule.evaluate.when}"
    return _sentence(rule.warn or rule.ask or "")


def _type(annotation: Any) -> str:
    """A field's type in words: the choices of a Literal, 'list of …', the plain name."""
    origin, inner = typing.get_origin(annotation), [a for a in typing.get_args(annotation) if a is not type(None)]
    if origin is typing.Literal:
        return ", ".join(f"`{choice}`" for choice in inner)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_type(a) for a in inner)
    if origin in (list, tuple):
        return f"list of {_type(inner[0])}"
    if origin is dict:
        return f"table of name: {_type(inner[1])}"
    words = {"str": "text", "float": "number", "int": "whole number", "bool": "true or false"}
    return words.get(annotation.__name__, f"table ({annotation.__name__})")


def _value(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return ", ".join(_value(item) for item in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _sentence(text: str) -> str:
    text = re.sub(r"\{(\w+)\}", r"`\1`", " ".join(text.split()))
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "?", "!", ")")) else ".") if text else ""


def _list(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "|".join(" --- " for _ in head) + "|"]
    lines += ["| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join(lines)


def _marked(source: str, text: str) -> str:
    return f"<!-- generated: edit {source}, not this table -->\n\n{text}"


GROUPS = {
    "1": "Form of the recipe",
    "2": "What the method needs and means",
    "3": "Checkpoints",
    "4": "Adapters",
    "5": "Output and resources",
    "6": "Mixtures of experts and several stages",
    "7": "mergekit's planner",
}
LEVELS = {
    "yaml": "needs only the text",
    "checkpoints": "needs the sources on this machine",
    "resources": "needs an output folder or a memory budget",
    "planner": "`--deep`: asks mergekit itself",
}
HEAD = """# Codes of the linter

<!-- Generated from mcp_server/rules/lint.yaml by `python -m mcp_server.docgen lint`: edit that file. -->

`model-merging validate RECIPE.yml` reports findings with these codes. An **error** stops the merge or makes its result
something else than the recipe says; a **warning** deserves a look; a **note** teaches. A check that lacks a fact (a model
that is not on this machine, no output given) is skipped and says so: it never passes silently. `--fix` corrects what is
marked, lists what it changed and keeps the old file as `RECIPE.yml.orig`. The behaviour described was observed on mergekit 0.1.5.
"""


def lint_page() -> str:
    """The whole page: a table of all codes, then each with what, why, example and fix."""
    lines = [HEAD, "| code | | finding | checked | `--fix` |", "|---|---|---|---|---|"]
    for rule in rules().values():
        fixable = "yes" if rule.fixable else ""
        anchor = f"[{rule.code}](#{rule.code.lower()})"
        lines.append(f"| {anchor} | {rule.severity} | {rule.title} | {LEVELS[rule.level]} | {fixable} |")
    group = ""
    for rule in rules().values():
        if rule.code[2] != group:
            group = rule.code[2]
            lines += ["", f"## {GROUPS[group]}"]
        lines += _section(rule)
    return "\n".join(lines) + "\n"


def _section(rule: LintRule) -> list[str]:
    return [
        "",
        f"### {rule.code}",
        "",
        f"**{rule.title}** ({rule.severity}{', fixable' if rule.fixable else ''}).",
        rule.what,
        "",
        f"- Why it matters: {rule.why}",
        f"- Example: `{rule.example}`",
        f"- Fix: {rule.fix}",
    ]


PRINTERS: dict[str, Callable[[str], str]] = {"golden": golden, "example": rendered_example, "page": strategy_page}


def main(arguments: list[str]) -> int:
    """`python -m mcp_server.docgen golden|example|page STRATEGY` prints one block, `… lint` the page of lint codes."""
    if arguments == ["lint"]:
        sys.stdout.write(lint_page())
        return 0
    if len(arguments) != 2 or arguments[0] not in PRINTERS:
        print(f"usage: python -m mcp_server.docgen {'|'.join(PRINTERS)} STRATEGY, or lint", file=sys.stderr)
        return 2
    from mcp_server.errors import MergingError

    try:
        text = PRINTERS[arguments[0]](arguments[1])
    except MergingError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    sys.stdout.write(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
