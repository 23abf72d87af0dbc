"""What the recipes that a plan begins with cost, against the best that was measured: writes docs/benchmark.md.

usage: python benchmarks/regret.py > docs/benchmark.md

Regret is the least kept gain of the best candidate minus that of the recipe that the rule begins with, in points. What a plan
begins with is the product's own answer (`plan_for`), asked now with the measured cosine, so the page follows the rules; scores
are only looked up: docs/taskmaster.md (as `sweep` writes it), examples/one_prompt/measured/merges.jsonl (as score_modes.py does).
The interval is of one suite's mean over its prompts (Wilson, 95 %), divided by the gain: experts and base are taken as they are.
"""

from __future__ import annotations

import json
import re
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.six_skills.measured import Table, groups_of, wilson
from benchmarks.six_skills.page import summary
from mcp_server.catalog.signals import SeenScenario
from mcp_server.schemas.scenario import Relation, Scenario
from mcp_server.steps.recommend import plan_for
from mcp_server.steps.scenario import read_scenario

ROOT = Path(__file__).parents[1]
METHODS = ("task_arithmetic", "dare_ties", "dare_linear", "ties", "linear")
PROMPTS = {"tools": 100, "persona": 40}
QUICK = 20
"""Prompts of a candidate that was stopped early."""
ROW = re.compile(
    r"^\| (?P<name>[a-z_]+[^|]*?) \| (?P<tools>[\d.]+) \((?P<tg>-?\d+)%\)"
    r" \| (?P<persona>[\d.]+) \((?P<pg>-?\d+)%\) \|",
    re.M,
)
SAME = {"ties weights=0.5": "ties lambda=1.0 weights=1.0", "linear weights=0.5": "task_arithmetic lambda=0.5 weights=1.0"}
"""Recipes that are one: TIES divides by the sum of the weights, and half of each change added up is the mean of two models."""
BEFORE = """\
# What the rules cost

Written by `python benchmarks/regret.py > docs/benchmark.md`; a test holds that it is what the command writes.

## What a plan begins with

Least kept gain: of the skill that keeps less, merged minus base over expert minus base, on the development split (100 calls, 40
chats); in brackets its 95 % interval over the prompts. Regret: that of the best recipe measured minus this one, in points.
The first row of a pair is what `recommend` says first when it has looked at the files; the others are what it begins with when
that method is asked for.

| pair | method | weights | least kept gain | regret |
|---|---|---|---|---|"""
AFTER = """
What is said first has a regret of {first} points and keeps {whole} of the skill that keeps less. Over all sums and elections that
a plan may begin with the median is {median:g} points and the worst {worst}. These are two pairs of adapters of one 135 M model,
trained to leave each other's place alone, one seed each: they say nothing about other sizes, three sources, full fine-tunes or
changes that overlap, and rows whose intervals overlap are not told apart.

- **taskmaster** (persona 200 examples, tools 1,000; cosine -0.0005): each under its own system prompt. All 24 candidates, and how
  they were measured: [taskmaster.md](taskmaster.md).
- **one prompt** (persona 2,200, tools 5,400; cosine 0.0003): trained on under one system prompt for both
  roles: [its page](../examples/one_prompt/README.md), every score in
  [merges.jsonl](../examples/one_prompt/measured/merges.jsonl).

## Weights by examples

√examples, normalised, is the lessons' rule. It is taken where it is asked for (`weighting: examples`), and under TIES while
nothing is measured.

| pair | method | weights | least kept gain | regret |
|---|---|---|---|---|
{examples}

By √examples an average gives the smaller source too little to keep its skill, and equal shares cost both skills a good part. So
for skills that differ a plan chooses no average, and warns where one is asked for. Under TIES weights decide elections only;
neither weighting reaches whole changes on the second pair.

## When whole changes are wrong

An earlier pair on this base, of which one source answered in the other's place on 93 % of its prompts, had a cosine as small
(0.005) and kept .26 of exact calls with whole changes, .55 at lambda 0.7 (expert .875). So a plan whose cross-context check shows
a leak begins at 0.7, and one without that check asks for it first.

## Six skills in each other's way

{six} pairs of six adapters that overlap, contradict each other's style, leak, or differ in rank, norm and kind of training. Each
pair, three and six at once, what predicts a loss, and PEFT's combinations beside them: [six_skills.md](six_skills.md).

{skills}
"""


@dataclass(frozen=True)
class Candidate:
    name: str
    gains: dict[str, int]
    scores: dict[str, float]
    stopped: bool = False

    @property
    def least(self) -> int:
        return min(self.gains.values())


@dataclass(frozen=True)
class Pair:
    """`experts`: expert's score and base's score by skill; `cosine` as `compare` measures it."""

    name: str
    scenario: Path
    cosine: float
    experts: dict[str, tuple[float, float]]
    scores: Path

    def candidates(self) -> dict[str, Candidate]:
        return from_sweep(self.scores) if self.scores.suffix == ".md" else from_scores(self)

    def interval(self, one: Candidate) -> tuple[float, float]:
        """Of the least kept gain, in points."""
        which = min(one.gains, key=lambda name: one.gains[name])
        expert, base = self.experts[which]
        low, high = wilson(one.scores[which], QUICK if one.stopped else PROMPTS[which])
        return 100 * (low - base) / (expert - base), 100 * (high - base) / (expert - base)

    def asked(self, **changes: object) -> SeenScenario:
        """The pair's scenario with the cosine that its files show."""
        scenario = read_scenario(self.scenario)
        relation = (scenario.relation or Relation()).model_copy(update={"cosine": self.cosine})
        fields = {name: getattr(scenario, name) for name in Scenario.model_fields} | {"relation": relation} | changes
        return SeenScenario(**fields)


def from_sweep(page: Path) -> dict[str, Candidate]:
    found = {}
    for match in ROW.finditer(page.read_text(encoding="utf-8")):
        name = match["name"].removesuffix(" (the plan)")
        stopped = "stopped" in match.string[match.end() :].partition("\n")[0]
        gains = {"tools": int(match["tg"]), "persona": int(match["pg"])}
        found[name] = Candidate(name, gains, {"tools": float(match["tools"]), "persona": float(match["persona"])}, stopped)
    return found


def from_scores(pair: Pair) -> dict[str, Candidate]:
    found = {}
    for line in pair.scores.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        scores = {skill: row[skill] for skill in pair.experts}
        gains = {s: round(100 * (scores[s] - base) / (expert - base)) for s, (expert, base) in pair.experts.items()}
        found[row["recipe"]] = Candidate(row["recipe"], gains, scores)
    return found


PAIRS = (
    Pair(
        "taskmaster",
        ROOT / "examples" / "taskmaster" / "scenario.yaml",
        -0.0005,
        {"tools": (0.87, 0.0), "persona": (0.994, 0.00625)},
        ROOT / "docs" / "taskmaster.md",
    ),
    Pair(
        "one prompt",
        ROOT / "examples" / "one_prompt" / "scenario.yaml",
        0.0003,
        {"tools": (0.95, 0.0), "persona": (0.944, 0.0)},
        ROOT / "examples" / "one_prompt" / "measured" / "merges.jsonl",
    ),
)


def begins_with(pair: Pair, **changes: object) -> tuple[str, str]:
    """What a plan begins with, in words, and the candidate that it is."""
    plan = plan_for(pair.asked(**changes))
    assert plan.strategy is not None
    lam = plan.strategy.parameters.get("lambda")
    said = " and ".join(f"{value:g}" for value in plan.weights.values()) + (f", λ {lam:g}" if lam is not None else "")
    values = set(plan.weights.values())
    name = plan.strategy.id + (f" lambda={lam}" if lam is not None else "")
    name += f" weights={values.pop()}" if len(values) == 1 else ""
    return said, SAME.get(name, name)


def rows(pair: Pair, asked: list[dict[str, object]]) -> list[tuple[str, int | None]]:
    found = pair.candidates()
    best = max(one.least for one in found.values())
    lines: list[tuple[str, int | None]] = []
    for changes in asked:
        said, name = begins_with(pair, **changes)
        method = str(changes.get("strategy") or f"**{plan_for(pair.asked()).strategy.id}** (first)")  # type: ignore[union-attr]
        one = found.get(name)
        if one is None:
            lines.append((f"| {pair.name} | {method} | {said} | not measured | |", None))
            continue
        low, high = pair.interval(one)
        text = f"| {pair.name} | {method} | {said} | {one.least} % ({low:.0f} to {high:.0f}) | {best - one.least} |"
        lines.append((text, best - one.least))
    return lines


def main(pairs: tuple[Pair, ...] = PAIRS) -> str:
    lines, first, others, whole = [BEFORE], [], [], []
    for pair in pairs:
        found = rows(pair, [{}, *({"strategy": method} for method in METHODS[1:])])
        lines += [text for text, _ in found]
        first.append(found[0][1])
        others += [regret for text, regret in found if regret is not None and "| linear |" not in text]
        whole.append(pair.candidates()[begins_with(pair)[1]].least)
    by_examples = [
        text for pair in pairs for text, _ in rows(pair, [{"strategy": m, "weighting": "examples"} for m in METHODS[3:]])
    ]
    said = " and ".join(str(regret) for regret in first)
    kept = " and ".join(f"{share} %" for share in whole)
    figures = {"median": statistics.median(others), "worst": max(others), "examples": "\n".join(by_examples)}
    skills = Table()
    lines.append(AFTER.format(first=said, whole=kept, six=len(groups_of(skills, 2, 2)), skills=summary(skills), **figures))
    return "\n".join(lines)


if __name__ == "__main__":
    print(main(), end="")
