#!/usr/bin/env python3
"""Writes docs/six_skills.md from what run.py measured, and what `recommend` says now from what the files showed.

usage: page.py > docs/six_skills.md

Recovered gain: merged minus base over expert minus base. A pair is as good as the skill that keeps less. Regret: the best recipe
measured minus the one that `recommend` begins with, in points. Only the rules are asked anew; every figure is looked up.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.six_skills.measured import (
    BOTH,
    GOOD,
    LEAK,
    Group,
    Table,
    by_partner,
    groups_of,
    merges_it,
    spearman,
    wilson,
    worked,
)
from benchmarks.six_skills.prose import ALONE, PEFTS, PREDICTS, SAYS, SEARCHED, TOP, TWO
from benchmarks.six_skills.recipes import EXAMPLE, MANY, MERGEKIT, NAMES, OURS, PEFT


def line(cells: Iterable[object]) -> str:
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def table(head: list[str], rows: list[list[object]]) -> str:
    return "\n".join([line(head), "|" + "---|" * len(head), *map(line, rows)])


def title(group: Group) -> str:
    return "all six" if len(group) == len(NAMES) else " + ".join(group)


def experts(found: Table) -> str:
    rows: list[list[object]] = []
    for name in NAMES:
        base, expert = found.alone["base"], found.alone[name]
        low, high = wilson(expert["scores"][name], expert["n"][name])
        own = f"{expert['scores'][name]:.3f} ({low:.2f} to {high:.2f})"
        norm = next(row["norms"][name] for row in found.files.values() if name in row["norms"])
        rows.append([name, f"{base['scores'][name]:.3f}", own, expert["n"][name], expert["perplexity"], f"{norm:.2f}"])
    return table(["skill", "base", "expert (95 %)", "prompts", "perplexity", "norm of ΔW"], rows)


def leaks(found: Table) -> str:
    cross = found.cross()
    contexts = [*NAMES, "general"]
    rows = [[name, *(f"{cross[name][context]:.2f}" for context in contexts)] for name in NAMES]
    return table(["source", *contexts], rows)


def columns(found: Table, groups: list[Group]) -> list[str]:
    """Our recipes that were measured on at least a third of these groups; the last table has the others."""
    return [
        r for r in (*OURS, *MERGEKIT, *MANY, "search") if 3 * sum(r in found.measured(group) for group in groups) >= len(groups)
    ]


def merges(found: Table, groups: list[Group]) -> str:
    shown = columns(found, groups)
    rows: list[list[object]] = []
    for group in groups:
        held = found.measured(group)
        best, _ = found.best(group)
        cells = []
        for recipe in shown:
            text = f"{found.least(held[recipe]):.0f}" if recipe in held else ""
            cells.append(f"**{text}**" if recipe == best and text != "0" else text)
        low, high = found.interval(held[best])
        cosine = max(found.cosines(group).values(), key=abs)
        ratio = held[best]["perplexity"] / found.alone["base"]["perplexity"]
        about = [title(group), f"{cosine:.3f}", f"{found.leak(group):.2f}", f"{found.both(group):.2f}"]
        rows.append([*about, *cells, f"{low:.0f} to {high:.0f}", f"{ratio:.2f}"])
    head = ["sources", "cosine", "leak", "both", *(recipe.replace(" lambda=", " λ ") for recipe in shown)]
    return table([*head, "95 % of the best", "its perplexity ÷ base"], rows)


def per_skill(found: Table, groups: list[Group]) -> str:
    rows: list[list[object]] = []
    for group in groups:
        for recipe, row in found.measured(group).items():
            gains = found.gains(row)
            rows.append([title(group), recipe, *(f"{gains[n]:.0f}" if n in gains else "" for n in NAMES), row["perplexity"]])
    return table(["sources", "recipe", *NAMES, "perplexity"], rows)


def peft(found: Table, groups: list[Group]) -> str:
    rows: list[list[object]] = []
    for group in groups:
        held = found.merges[group]
        if not any(f"peft {kind}" in held for kind in PEFT):
            continue
        cells = []
        for kind in PEFT:
            row = held.get(f"peft {kind}")
            cells.append("" if row is None else "refused" if "refused" in row else f"{found.least(row):.0f}")
        joint = held.get("joint adapter")
        cells.append("" if joint is None else f"{found.least(joint):.0f}")
        rows.append([title(group), *cells, f"{found.best(group)[1]:.0f}"])
    columns = ["sources", *(f"`{kind}`" for kind in PEFT), "joint adapter", "best of ours"]
    trained = any(row[-2] for row in rows)
    return table(columns, rows) if trained else table(columns[:-2] + columns[-1:], [row[:-2] + row[-1:] for row in rows])


def regrets(found: Table, groups: list[Group], *, cross: bool) -> tuple[str, list[float]]:
    rows: list[list[object]] = []
    values = []
    for group in groups:
        plan = found.advised(group, cross=cross)
        name, least = found.chosen(group, cross=cross)
        best, top = found.best(group)
        if least is None:
            missing = "not measured" if merges_it(plan) else ""
            rows.append([title(group), plan.verdict, name, missing, f"{best}: {top:.0f}", ""])
            continue
        values.append(top - least)
        rows.append([title(group), plan.verdict, name, f"{least:.0f}", f"{best}: {top:.0f}", f"{top - least:.0f}"])
    return table(["sources", "verdict", "begins with", "keeps", "best measured", "regret"], rows), values


def told(values: list[float]) -> str:
    """Median and worst of regrets in words."""
    return (
        f"median {statistics.median(values):.0f}, worst {max(values):.0f} points over {len(values)}"
        if values
        else "none measured"
    )


def in_common(one: str, other: str) -> int:
    """How many prompts two adapters both learned."""
    files = [(EXAMPLE / "data" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines() for name in (one, other)]
    return len(set.intersection(*({json.loads(text)["user"] for text in lines} for lines in files)))


def searched(found: Table, test: Table) -> str:
    """The section on the test split, for the groups that were searched; nothing where none was."""
    groups = [group for group in test.groups() if "search" in test.measured(group)]
    rows: list[list[object]] = []
    costs, kept_apart, right = [], 0, 0
    for group in groups:
        row, plan = test.measured(group)["search"], found.advised(group, cross=True)
        name, _ = found.chosen(group, cross=True)
        least = test.least(row)
        low, high = test.interval(row)
        first = test.measured(group).get(name)
        cells: list[object] = [title(group), plan.verdict, name, "", row["chosen"], row["dev"]["tried"]]
        cells += [f"{least:.0f} ({low:.0f} to {high:.0f})", ""]
        if first is not None:
            costs.append(max(least, test.least(first)) - test.least(first))
            cells[3], cells[7] = f"{test.least(first):.0f}", f"{costs[-1]:.0f}"
        elif not merges_it(plan):
            kept_apart, right = kept_apart + 1, right + (least < GOOD)
        rows.append(cells)
    if not groups:
        return ""
    said = (
        f"Where it says to merge, the regret against the better of the two: {told(costs)} groups.\n"
        f"Where it says not to ({kept_apart}), the search keeps less than {GOOD} % of some skill in {right}."
    )
    about = SEARCHED.format(n=next(iter(test.alone["base"]["n"].values())), told=said)
    head = ["sources", "verdict", "begins with", "keeps", "the search chose", "tried", "keeps (95 %)", "regret"]
    return f"{about}\n\n{table(head, rows)}"


def page(found: Table, test: Table) -> str:
    pairs, larger = groups_of(found, 2, 2), groups_of(found, 3, 6)
    limit = next(iter(found.alone["base"]["n"].values()))
    sum_ = "task_arithmetic lambda=1.0"
    held = [group for group in pairs if sum_ in found.measured(group)]
    kept = [found.least(found.measured(group)[sum_]) for group in held]
    by_leak = spearman([found.leak(group) for group in held], kept)
    by_both = spearman([found.both(group) for group in held], kept)
    by_cosine = spearman([max(map(abs, found.cosines(group).values())) for group in held], kept)
    without, costs = regrets(found, pairs, cross=False)
    checked, costs_checked = regrets(found, pairs, cross=True)
    parts = [
        TOP.format(limit=limit),
        SAYS.format(shared=in_common("lights", "home")),
        f"## The experts alone\n\n{experts(found)}",
        f"{ALONE}\n\n{leaks(found)}",
        f"{TWO}\n\n{merges(found, pairs)}",
    ]
    if larger:
        parts.append(f"## Three and six at once\n\n{merges(found, larger)}")
    figures = (len(held), by_leak, by_both, by_cosine, by_partner(found, held, sum_))
    parts.append(f"{PREDICTS.format(*figures)}\n\n{predicted(found)}")
    parts.append(
        f"## What `recommend` begins with\n\nWith the files alone: {told(costs)} pairs.\n\n{without}\n\n"
        f"With the cross-context check handed over: {told(costs_checked)} pairs.\n\n{checked}"
    )
    if text := searched(found, test):
        parts.append(text)
    beside = [group for group in found.groups() if any(f"peft {kind}" in found.merges[group] for kind in PEFT)]
    if beside:
        parts.append(f"{PEFTS}\n\n{peft(found, beside)}")
    parts.append(f"## Every skill of every merge\n\n{per_skill(found, found.groups())}")
    return "\n\n".join(parts) + "\n"


def predicted(found: Table) -> str:
    """How well what can be known before tells the merges in which some recipe keeps enough."""
    groups = groups_of(found, 2, 2)
    signs: list[tuple[str, Callable[[Group], bool]]] = [
        (f"no leak above {LEAK:g} (`cross_context_rate`)", lambda group: found.leak(group) <= LEAK),
        (f"leak of both up to {BOTH:g} (`mutual_leak`)", lambda group: found.both(group) <= BOTH),
        ("cosine within ± 0.1", lambda group: max(map(abs, found.cosines(group).values())) <= 0.1),
        ("`recommend` with the check: merge, with caution or not", lambda group: merges_it(found.advised(group, cross=True))),
    ]
    rows: list[list[object]] = []
    for name, holds in signs:
        cells = [[sum(worked(found, g) is w for g in groups if holds(g) is h) for w in (True, False)] for h in (True, False)]
        rows.append([name, *cells[0], *cells[1]])
    head = ["sign", f"holds: a recipe keeps {GOOD} %", "holds: none does", f"does not hold: a recipe keeps {GOOD} %", "none does"]
    return table(head, rows)


def summary(found: Table) -> str:
    """Two rows for the page of all pairs: what `recommend` says here, without and with the cross-context check."""
    pairs = groups_of(found, 2, 2)
    rows: list[list[object]] = []
    for name, cross in (("the files alone", False), ("and the cross-context check", True)):
        merged = [group for group in pairs if merges_it(found.advised(group, cross=cross))]
        known = [(group, least) for group in merged if (least := found.chosen(group, cross=cross)[1]) is not None]
        costs = [found.best(group)[1] - least for group, least in known]
        apart = [group for group in pairs if group not in merged]
        right = sum(not worked(found, group) for group in apart)
        median, worst = (f"{statistics.median(costs):.0f}", f"{max(costs):.0f}") if costs else ("", "")
        rows.append([name, len(merged), sum(worked(found, group) for group in merged), median, worst, len(apart), right])
    head = ["known", "says merge", f"a recipe keeps {GOOD} %", "median regret", "worst", "says not to", "no recipe keeps it"]
    return table(head, rows)


if __name__ == "__main__":
    print(page(Table(), Table("test")), end="")
