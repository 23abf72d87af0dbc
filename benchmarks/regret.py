"""What the weights that a plan begins with cost, against the best recipe of the bake-off: writes docs/benchmark.md.

usage: python benchmarks/regret.py [PAGE…] > docs/benchmark.md     PAGE: bake-off tables as `sweep` writes them (sweep.md)

Regret is the least kept gain of the best candidate minus that of the recipe that the rule begins with, in points. The rule is the
product's own (`weights_for`, `starting_parameters`), asked now, so the page follows the code; figures are only looked up.
The interval is of one suite's mean over its prompts (Wilson, 95 %), divided by the gain: experts and base are taken as they are.
"""

from __future__ import annotations

import math
import re
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path

from mcp_server import catalog
from mcp_server.steps.recommend.weights import starting_parameters, weights_for
from mcp_server.steps.scenario import read_scenario

ROOT = Path(__file__).parents[1]
PAGES = {"taskmaster (persona, tools)": ROOT / "docs" / "taskmaster.md"}
SCENARIO = ROOT / "examples" / "taskmaster" / "scenario.yaml"
METHODS = ("ties", "task_arithmetic", "dare_ties", "dare_linear", "linear")
BEFORE = """\
# What the rules cost

Written by `python benchmarks/regret.py > docs/benchmark.md`; a test holds that it is what the command writes.

## Weights and λ that a plan begins with

Least kept gain: of the skill that keeps less, merged minus base over expert minus base, on the development split; in
brackets its 95 % interval over the prompts. Regret: that of the bake-off's best candidate minus this one, in points.

| pair | method | begins with (persona, tools) | least kept gain | regret |
|---|---|---|---|---|"""
AFTER = """
Median {median} points and {worst} at worst over the methods that a plan chooses for different skills, on {pairs} of
adapters: what ships here. One pair says nothing about others, and the intervals overlap for everything above 90 %. All
candidates, and how they were measured: [taskmaster.md](taskmaster.md).

`linear` with 0.5 and 0.5 is the candidate `task_arithmetic lambda=0.5 weights=1.0`: the mean of base + Δ₁ and base + Δ₂
is base + ½Δ₁ + ½Δ₂. By √examples an average gives the smaller source too little to keep its skill (the persona of 200
examples beside 1,000), and equal shares cost both skills up to a third. So on a base a plan chooses no average for skills
that complement each other; where one is asked for by name it takes the shares that the lessons teach, and a warning names
the sum of whole changes and equal shares. Averages are for near copies, where shares matter little.
"""
ROW = re.compile(
    r"^\| (?P<name>[a-z_]+[^|]*?) \| (?P<tools>[\d.]+) \((?P<tg>-?\d+)%\)"
    r" \| (?P<persona>[\d.]+) \((?P<pg>-?\d+)%\) \|",
    re.M,
)
EXPERTS = {"tools": (0.87, 0.0, 100), "persona": (0.994, 0.00625, 40)}
"""Expert's score, base's score, prompts of the development split; the page's second table."""
QUICK = 20
"""Prompts of a candidate that was stopped early."""


@dataclass(frozen=True)
class Candidate:
    name: str
    gains: dict[str, int]
    scores: dict[str, float]
    stopped: bool

    @property
    def least(self) -> int:
        return min(self.gains.values())

    def interval(self) -> tuple[float, float]:
        """Of the least kept gain, in points."""
        which = min(self.gains, key=lambda name: self.gains[name])
        expert, base, prompts = EXPERTS[which]
        low, high = wilson(self.scores[which], QUICK if self.stopped else prompts)
        return 100 * (low - base) / (expert - base), 100 * (high - base) / (expert - base)


def wilson(share: float, n: int, z: float = 1.96) -> tuple[float, float]:
    share = min(max(share, 0.0), 1.0)
    middle, half = share + z * z / (2 * n), z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return (middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)


def candidates(page: Path) -> dict[str, Candidate]:
    found = {}
    for match in ROW.finditer(page.read_text(encoding="utf-8")):
        name = match["name"].removesuffix(" (the plan)")
        stopped = "stopped" in match.string[match.end() :].partition("\n")[0]
        gains = {"tools": int(match["tg"]), "persona": int(match["pg"])}
        found[name] = Candidate(name, gains, {"tools": float(match["tools"]), "persona": float(match["persona"])}, stopped)
    return found


def begins_with(method: str) -> tuple[str, str]:
    """The rule's recipe in words, and the candidate that it is in the table."""
    scenario, strategy = read_scenario(SCENARIO), catalog.strategy(method)
    weights, _ = weights_for(scenario, strategy)
    lam = starting_parameters(strategy, weights, len(weights)).get("lambda")
    said = " and ".join(f"{value:g}" for value in weights.values()) + (f", λ {lam:g}" if lam is not None else "")
    whole = set(weights.values()) == {1.0}
    return said, f"{method} lambda={lam} weights=1.0" if whole else method


def main(pages: dict[str, Path]) -> str:
    lines = [BEFORE]
    summed = []
    for pair, page in pages.items():
        found = candidates(page)
        best = max(found.values(), key=lambda one: one.least)
        for method in METHODS:
            said, name = begins_with(method)
            one = found.get(name)
            if one is None:
                lines.append(f"| {pair} | {method} | {said} | not measured | |")
                continue
            regret = best.least - one.least
            if method != "linear":
                summed.append(regret)
            low, high = one.interval()
            lines.append(f"| {pair} | {method} | {said} | {one.least} % ({low:.0f} to {high:.0f}) | {regret} |")
        even = found["task_arithmetic lambda=0.5 weights=1.0"]
        low, high = even.interval()
        regret = best.least - even.least
        lines.append(f"| {pair} | linear | 0.5 and 0.5, asked for | {even.least} % ({low:.0f} to {high:.0f}) | {regret} |")
    pairs = f"{len(pages)} pair{'s' if len(pages) > 1 else ''}"
    lines.append(AFTER.format(median=f"{statistics.median(summed):g}", worst=max(summed), pairs=pairs))
    return "\n".join(lines)


if __name__ == "__main__":
    given = {Path(name).parent.name or name: Path(name) for name in sys.argv[1:]}
    print(main(given or PAGES), end="")
