"""What run.py measured, read from its rows: gains, intervals, leaks, and what `recommend` says now of the same files.

Recovered gain: merged minus base over expert minus base. A group is as good as the skill that keeps less.
"""

from __future__ import annotations

import itertools
import json
import math
import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.six_skills.recipes import EXAMPLE, NAMES, Cosines, Cross, as_measured, first
from mcp_server.schemas.plan import Plan
from mcp_server.steps.recommend import plan_for

MEASURED = EXAMPLE / "measured"
LEAK = 0.2
"""Above it a source counts as acting in the other's place (`cross_context_leak` in the rules)."""
BOTH = 0.5
"""Above it each of two answers the other's prompts (`mutual_leak` in the rules)."""
GOOD = 80
"""Percent of its gain that the skill which keeps less must keep for a merge to count as having worked."""
Row = dict[str, Any]
Group = tuple[str, ...]


def read(name: str, folder: Path = MEASURED) -> list[Row]:
    file = folder / name
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.is_file() else []


def wilson(share: float, n: int, z: float = 1.96) -> tuple[float, float]:
    """95 % interval of a share of n."""
    share = min(max(share, 0.0), 1.0)
    middle, half = share + z * z / (2 * n), z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return (middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)


def merges_it(plan: Plan) -> bool:
    return plan.verdict in ("merge", "merge_with_caution")


@dataclass
class Table:
    """Everything measured on one split."""

    split: str = "dev"
    folder: Path = MEASURED
    alone: dict[str, Row] = field(init=False)
    merges: dict[Group, dict[str, Row]] = field(init=False)
    files: dict[Group, Row] = field(init=False)

    def __post_init__(self) -> None:
        self.alone = {row["source"]: row for row in read("sources.jsonl", self.folder) if row["split"] == self.split}
        self.merges = {}
        for row in read("merges.jsonl", self.folder):
            if row["split"] == self.split:
                self.merges.setdefault(tuple(row["sources"]), {})[row["recipe"]] = row
        self.files = {tuple(row["sources"]): row for row in read("advice.jsonl", self.folder)}

    def gain(self, name: str, score: float) -> float:
        base, expert = (self.alone[who]["scores"][name] for who in ("base", name))
        return float(100 * (score - base) / (expert - base))

    def gains(self, row: Row) -> dict[str, float]:
        return {name: self.gain(name, score) for name, score in row["scores"].items()}

    def least(self, row: Row) -> float:
        return min(self.gains(row).values())

    def interval(self, row: Row) -> tuple[float, float]:
        """Of the least gain: 95 % over its suite's prompts; experts and base are taken as they are."""
        gains = self.gains(row)
        name = min(gains, key=lambda each: gains[each])
        low, high = wilson(row["scores"][name], row["n"][name])
        return self.gain(name, low), self.gain(name, high)

    def measured(self, group: Group) -> dict[str, Row]:
        """Our recipes; PEFT's combinations and a joint adapter are beside them and no recipe of ours."""
        found = self.merges.get(group, {})
        return {recipe: row for recipe, row in found.items() if not recipe.startswith(("peft", "joint"))}

    def best(self, group: Group) -> tuple[str, float]:
        found = self.measured(group)
        name = max(found, key=lambda recipe: self.least(found[recipe]))
        return name, self.least(found[name])

    def cross(self) -> Cross:
        """Source → context → share of the context's prompts that it answers in its own way."""
        return {
            name: {context: shown[name] for context, shown in self.alone[name]["shown"].items()}
            for name in NAMES
            if name in self.alone
        }

    def leak(self, group: Group) -> float:
        """The highest rate at which one of a group shows its behaviour where another is asked."""
        rates = self.cross()
        return max(rates[one][other] for one in group for other in group if one != other)

    def both(self, group: Group) -> float:
        """Of two of a group, the rate at which each answers the other's prompts (the smaller of the two); the highest pair's."""
        rates = self.cross()
        return max(min(rates[a][b], rates[b][a]) for a, b in itertools.combinations(group, 2))

    def cosines(self, group: Group) -> Cosines:
        found: Cosines = self.files[group]["cosines"]
        return found

    def advised(self, group: Group, *, cross: bool) -> Plan:
        """What `recommend` says now of what the files showed, and of the cross-context check where it is handed over."""
        row = self.files[group]
        return plan_for(as_measured(group, row["cosines"], row["norms"], self.cross() if cross else None))

    def chosen(self, group: Group, *, cross: bool) -> tuple[str, float | None]:
        """The recipe that it begins with, and that recipe's least gain where it was measured."""
        plan = self.advised(group, cross=cross)
        if not merges_it(plan):
            return "no merge", None
        name = first(plan)
        row = self.measured(group).get(name)
        return name, None if row is None else self.least(row)

    def groups(self) -> list[Group]:
        """Every group that has a measurement, pairs first."""
        known = [group for group in self.merges if self.measured(group)]
        return sorted(known, key=lambda group: (len(group), [NAMES.index(name) for name in group]))


def ranks(values: list[float]) -> list[float]:
    """Mean ranks, so that equal values share one."""
    return [(sum(v < x for v in values) + sum(v <= x for v in values) + 1) / 2 for x in values]


def spearman(one: list[float], other: list[float]) -> float:
    """Rank correlation; NaN where one side is constant."""
    a, b = ranks(one), ranks(other)
    if len(set(a)) < 2 or len(set(b)) < 2:
        return float("nan")
    return statistics.correlation(a, b)


def groups_of(found: Table, low: int, high: int) -> list[Group]:
    return [group for group in found.groups() if low <= len(group) <= high]


def worked(found: Table, group: Group) -> bool:
    """Whether any recipe that was measured keeps enough of every skill."""
    return found.best(group)[1] >= GOOD


def by_partner(found: Table, groups: list[Group], recipe: str) -> float:
    """Rank correlation over both skills of each pair: gain kept, and the rate at which the other answers its prompts."""
    rates, kept = [], []
    for group in groups:
        gains = found.gains(found.measured(group)[recipe])
        for name, other in (group, group[::-1]):
            rates.append(found.cross()[other][name])
            kept.append(gains[name])
    return spearman(rates, kept)
