"""The questions whose answers would change the plan: each unknown is answered in thought, and the table is read again."""

from __future__ import annotations

from typing import Any

from mcp_server.catalog.models import Catalog
from mcp_server.catalog.signals import Facts
from mcp_server.steps.recommend.decide import Decision, decide, fill, fired, shown


def questions(decision: Decision, catalog: Catalog) -> list[str]:
    """In the order of rules/questions.yaml; each says what which answer would change. `question` rules follow."""
    asked = []
    for question in catalog.questions:
        if decision.facts[question.signal] is not None:
            continue
        changes = []
        for answer in question.answers:
            other = decide(_answered(decision.facts, question.signal, answer), catalog)
            if change := _change(decision, other):
                changes.append(f"{shown(answer) if not isinstance(answer, bool) else ('yes' if answer else 'no')}: {change}")
        if changes:
            asked.append(f"{question.ask} ({'; '.join(changes)})")
    return asked + [fill(rule.ask or "", decision.facts) for rule in fired(catalog, "question", decision.facts)]


def _answered(facts: Facts, signal: str, answer: Any) -> Facts:
    """The facts with one unknown answered, and what follows from the answer at once."""
    follows: Facts = {signal: answer}
    if signal == "source_status" and answer in ("missing", "broken", "unevaluated"):
        follows[f"{answer}_sources"] = "a source"
    if signal == "same_architecture" and answer is False:
        follows["architectures"] = "as you said"
    if signal == "sources_known":
        follows["source_count"] = 2
    return {**facts, **follows}


def _change(before: Decision, after: Decision) -> str:
    if before.facts["verdict"] != after.facts["verdict"]:
        return f"{after.facts['verdict']}"
    return f"{after.strategy}" if before.strategy != after.strategy else ""
