"""Read the decision table against the facts. A pure function of facts and rules; nothing here knows a method or a number."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from mcp_server.catalog.models import Catalog, Condition, Rule, Stage
from mcp_server.catalog.signals import Facts
from mcp_server.schemas.plan import FiredRule

STRATEGY_VERDICTS: Final = frozenset({"merge", "merge_with_caution", "route"})
_COMPARE: Final[dict[str, Callable[[Any, Any], Any]]] = {
    "is": operator.eq,
    "is_not": operator.ne,
    "in": lambda value, options: value in options,
    "below": operator.lt,
    "at_most": operator.le,
    "above": operator.gt,
    "at_least": operator.ge,
}


@dataclass(frozen=True)
class Decision:
    """What the first two stages say, and the rules that said it. `facts` holds the signals plus `verdict` and `strategy`."""

    verdict: Rule
    strategy: str | None
    strategy_rule: Rule | None
    facts: Facts


def decide(facts: Facts, catalog: Catalog) -> Decision:
    """Verdict and strategy. The table ends in rules without conditions, so both stages always decide."""
    facts = {name: value for name, value in facts.items() if name not in ("verdict", "strategy")}
    verdict = next(fired(catalog, "verdict", facts))
    facts["verdict"] = verdict.verdict
    if verdict.verdict not in STRATEGY_VERDICTS and not verdict.plan:
        return Decision(verdict, None, None, {**facts, "strategy": None})
    rule = next(fired(catalog, "strategy", facts))
    strategy = facts["asked_strategy"] if rule.choose == "asked" else rule.choose
    return Decision(verdict, strategy, rule, {**facts, "strategy": strategy})


def fired(catalog: Catalog, stage: Stage, facts: Facts) -> Iterator[Rule]:
    """The rules of one stage whose conditions all hold, in the table's order."""
    for rule in catalog.rules:
        if rule.stage == stage and all(holds(condition, facts, catalog) for condition in rule.when):
            yield rule


def holds(condition: Condition, facts: Facts, catalog: Catalog) -> bool:
    """Whether one condition holds. Unknown (None) satisfies `unknown` and nothing else."""
    value = facts[condition.signal]
    if condition.op in ("known", "unknown"):
        return (value is None) is (condition.op == "unknown")
    if value is None:
        return False
    limit = condition.value
    if isinstance(limit, dict):
        limit = catalog.thresholds[limit["threshold"]].value
    return bool(_COMPARE[condition.op](value, limit))


def fill(text: str, facts: Facts) -> str:
    """Put signals into a rule's text; the catalogue check made sure that the rule reads each one."""
    return re.sub(r"\{(\w+)\}", lambda match: shown(facts[match.group(1)]), " ".join(text.split()))


def shown(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def as_fired(rule: Rule, facts: Facts) -> FiredRule:
    return FiredRule(id=rule.id, because=fill(rule.because, facts), source=rule.source)
