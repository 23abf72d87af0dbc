#!/usr/bin/env python3
"""Merges the six skills' adapters in pairs, triples and all at once, by every recipe, and measures what is left of each skill.

usage: run.py BASE [--limit 32] [--split dev] [--only advice|sources|ours|first|peft|search|joint] [--recipe R]

Resumable: a row that DIR (examples/six_skills/measured) holds is not measured again. Recipes go in order of interest, each over
all groups, so that a run that is stopped has whole columns. `page.py` writes docs/six_skills.md from the rows.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.six_skills.measure import Bench
from benchmarks.six_skills.measured import Table
from benchmarks.six_skills.recipes import EXAMPLE, GROUPS, MANY, MERGEKIT, NAMES, OURS, PEFT, candidates, first, planned, scenario
from mcp_server.catalog.signals.relations import pair_relations
from mcp_server.errors import MergingError
from mcp_server.steps.recommend import plan_for
from mcp_server.steps.recommend.look import look
from mcp_server.steps.sweep.candidates import Candidate, candidate_of
from mcp_server.steps.sweep.space import Space
from mcp_server.workers.sweeping.search import Goals, Search

FOREIGN = 12
"""Prompts of each context in which every source is asked alone."""
Row = dict[str, Any]


class Rows:
    """A file of JSON lines that grows by whole lines."""

    def __init__(self, path: Path, keys: tuple[str, ...]) -> None:
        self.path, self.keys = path, keys
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        self.held = {self._key(json.loads(line)) for line in lines}

    def _key(self, row: Row) -> str:
        return json.dumps([row[key] for key in self.keys])

    def has(self, **row: Any) -> bool:
        return self._key(row) in self.held

    def add(self, **row: Any) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
        self.held.add(self._key(row))
        print(json.dumps(row), flush=True)


def general(split: str) -> list[str]:
    """Prompts that no adapter is for."""
    words = yaml.safe_load((EXAMPLE / "wording.yaml").read_text(encoding="utf-8"))["general"]
    return [text.format(topic=topic) for topic in words["topics"][split] for text in words[split] if "{topic}" in text]


def sources(bench: Bench, rows: Rows, adapters: Path, split: str) -> None:
    """The base on all six suites, each source on its own; perplexity, and whose behaviour shows on whose prompts."""
    contexts = {name: [row["user"] for row in bench.asked[name]][:FOREIGN] for name in NAMES}
    contexts["general"] = general("test")[:FOREIGN]
    for name in ("base", *there(adapters)):
        if rows.has(source=name, split=split):
            continue
        started = time.monotonic()
        bench.reset()
        if name != "base":
            bench.merge(alone(bench.folder, adapters / name))
        shown = {context: bench.shown(prompts) for context, prompts in contexts.items()}
        seconds = round(time.monotonic() - started)
        rows.add(source=name, split=split, **bench.measured(NAMES if name == "base" else [name]), shown=shown, seconds=seconds)


def alone(base: Path, adapter: Path) -> str:
    return f"merge_method: passthrough\nmodels:\n  - model: {base}+{adapter}\ndtype: bfloat16\n"


def there(adapters: Path) -> list[str]:
    """The skills whose adapters are there: the others' groups are left out, until a later run finds them."""
    return [name for name in NAMES if (adapters / name / "adapter_config.json").is_file()]


def groups(adapters: Path, only: list[str] | None = None) -> list[tuple[str, ...]]:
    """Those whose adapters are there; of them the ones in `only` (names with spaces between), where it is given."""
    return [group for group in GROUPS if set(group) <= set(there(adapters)) and (not only or " ".join(group) in only)]


def wanted(adapters: Path, given: argparse.Namespace) -> Iterator[tuple[str, tuple[str, ...]]]:
    """(recipe, group) in order of interest."""
    for recipe in given.recipe or (*OURS, *MERGEKIT, *MANY):
        yield from ((recipe, group) for group in groups(adapters, given.group) if recipe not in MANY or len(group) > 2)


def measure_merge(bench: Bench, rows: Rows, key: Row, recipe: str) -> None:
    """Measure a merge of `key["sources"]` and add its row."""
    started = time.monotonic()
    bench.merge(recipe)
    rows.add(**key, **bench.measured(key["sources"]), seconds=round(time.monotonic() - started))


def measured_before(given: argparse.Namespace, adapters: Path, split: str) -> Table:
    """The rows of a split, in which every source must be."""
    found = Table(split, given.rows)
    if missing := [name for name in there(adapters) if name not in found.alone]:
        raise SystemExit(f"{given.rows} has no {split} row of {', '.join(missing)}: run --only sources --split {split} first")
    return found


def ours(bench: Bench, rows: Rows, given: argparse.Namespace, adapters: Path, end: float) -> None:
    split = given.split
    for recipe, group in wanted(adapters, given):
        key = {"recipe": recipe, "sources": list(group), "split": split}
        if rows.has(**key):
            continue
        if time.monotonic() > end:
            return
        measure_merge(bench, rows, key, candidates(group, bench.folder, adapters)[recipe].recipe)


def first_choices(bench: Bench, rows: Rows, given: argparse.Namespace, adapters: Path) -> None:
    """What `recommend` begins with, with the files alone and with the cross-context check, where that is a merge."""
    known = measured_before(given, adapters, "dev")
    for group in groups(adapters, given.group):
        plan = planned(group, bench.folder, adapters)
        made = candidates(group, bench.folder, adapters) | {first(plan): candidate_of(plan, {})}
        for name in {first(plan), known.chosen(group, cross=True)[0]} & set(made):
            key = {"recipe": name, "sources": list(group), "split": given.split}
            if not rows.has(**key):
                measure_merge(bench, rows, key, made[name].recipe)


def peft(bench: Bench, rows: Rows, adapters: Path, split: str, end: float) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from benchmarks.six_skills.peft_merges import Combined

    combined = Combined(AutoModelForCausalLM.from_pretrained(bench.folder, dtype=torch.float32), adapters, there(adapters))
    for kind, group in itertools.product(PEFT, groups(adapters)):
        key = {"recipe": f"peft {kind}", "sources": list(group), "split": split}
        if rows.has(**key):
            continue
        if time.monotonic() > end:
            return
        started = time.monotonic()
        try:
            changes = combined.changes(group, kind)
        except ValueError as refused:
            rows.add(**key, refused=str(refused).splitlines()[0])
            continue
        bench.add(changes)
        rows.add(**key, **bench.measured(group), seconds=round(time.monotonic() - started))


def kept(found: dict[str, Any], group: tuple[str, ...], alone_at: dict[str, float]) -> Goals:
    """What the search is to raise: the gain of the skill that keeps less (the base has none), and the mean of all. An expert that
    gets nothing right leaves nothing to keep."""
    gains = [found["scores"][name] / alone_at[name] if alone_at[name] else 0.0 for name in group]
    return min(gains), sum(min(gain, 1.0) for gain in gains) / len(gains)


def search(bench: Bench, rows: Rows, adapters: Path, given: argparse.Namespace) -> None:
    """The best of a search of each group on the dev split, measured on the test split in float32."""
    test = Bench(bench.folder, EXAMPLE / "suites", "test", None, given.threads, given.device)
    known = measured_before(given, adapters, given.split)
    for group in groups(adapters, given.group):
        key = {"recipe": "search", "sources": list(group), "split": "test"}
        if rows.has(**key):
            continue
        started = time.monotonic()
        tried = looked_for(bench, known, adapters, group, given.trials)
        best, perplexity, name, recipe = max(tried, key=lambda found: (found[0][0], -found[1]))
        test.merge(recipe)
        seconds = round(time.monotonic() - started)
        dev = {"least": round(best[0], 4), "perplexity": perplexity, "tried": len(tried), "dtype": given.dtype}
        rows.add(**key, chosen=name, dev=dev, **test.measured(group), seconds=seconds)


def looked_for(
    bench: Bench, known: Table, adapters: Path, group: tuple[str, ...], trials: int
) -> list[tuple[Goals, float, str, str]]:
    """The search of `sweep --minutes`, begun with the plan and what was measured before (where nothing was, our recipes): of each
    candidate what it reaches, its perplexity, name and recipe."""
    experts = {name: known.alone[name]["scores"][name] for name in group}
    plan = planned(group, bench.folder, adapters)
    begun, held = candidates(group, bench.folder, adapters), known.measured(group)
    if held:
        begun = {name: begun[name] for name in held if name in begun}
    begun.setdefault(first(plan), candidate_of(plan, {}))
    looking = Search(Space(plan, list(begun.values())), seed=1)
    tried: list[tuple[Goals, float, str, str]] = []

    def reached(candidate: Candidate, found: Row | None = None) -> Goals:
        if found is None:
            bench.merge(candidate.recipe)
            found = bench.measured(group)
        goals = kept(found, group, experts)
        tried.append((goals, found["perplexity"], candidate.name, candidate.recipe))
        return goals

    for name, candidate in begun.items():
        goals = reached(candidate, held.get(name))
        if (point := looking.space.point_of(candidate)) is not None:
            looking.know(point, goals)
    for _ in range(trials):
        number, point = looking.propose()
        try:
            looking.tell(number, reached(candidate_of(plan, looking.space.settings_of(point))))
        except MergingError:  # a combination that its method refuses
            looking.tell(number, None)
    return tried


def joint(bench: Bench, rows: Rows, folder: Path, split: str) -> None:
    """One adapter trained on all the examples of a group (examples/six_skills/train_joint.py), the yardstick of a merge."""
    for group in GROUPS:
        key = {"recipe": "joint adapter", "sources": list(group), "split": split}
        adapter = folder / "-".join(group)
        if (adapter / "training.json").is_file() and not rows.has(**key):
            measure_merge(bench, rows, key, alone(bench.folder, adapter))


def advice(base: Path, adapters: Path, rows: Rows) -> None:
    """What the files of each group show `recommend`: cosines and norms of the task vectors. Its advice follows from them."""
    for group in groups(adapters):
        if not rows.has(sources=list(group)):
            seen = look(scenario(group, base, adapters))
            cosines = {" ".join(pair): relation.cosine for pair, relation in pair_relations(seen)}
            norms = {source.name: source.norm for source in seen.sources or []}
            rows.add(sources=list(group), cosines=cosines, norms=norms, verdict=plan_for(seen).verdict)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path)
    parser.add_argument("--limit", type=int, default=32, help="prompts of each suite; 0: all")
    parser.add_argument("--split", default="dev", choices=("dev", "test"))
    parser.add_argument("--only", choices=("advice", "sources", "ours", "first", "peft", "search", "joint"))
    parser.add_argument("--recipe", action="append", choices=(*OURS, *MANY, *MERGEKIT), help="of ours only these; repeat it")
    parser.add_argument("--group", action="append", help="only these sources, such as 'notes refuse'; repeat it (not of peft)")
    parser.add_argument("--minutes", type=float, default=1e6)
    parser.add_argument("--adapters", type=Path, default=EXAMPLE)
    parser.add_argument("--rows", type=Path, default=EXAMPLE / "measured")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--trials", type=int, default=24, help="proposals of the search, besides our recipes")
    parser.add_argument("--joint", type=Path, help="folder of train_joint.py, with --only joint")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--dtype", default="float32", help="of the search's looks at the dev split: bfloat16 where it is faster")
    given = parser.parse_args()
    base, adapters, end = given.base.resolve(), given.adapters.resolve(), time.monotonic() + 60 * given.minutes
    if given.only in (None, "advice"):
        advice(base, adapters, Rows(given.rows / "advice.jsonl", ("sources",)))
    if given.only == "advice":
        return
    dtype = given.dtype if given.only == "search" else "float32"
    bench = Bench(base, EXAMPLE / "suites", given.split, given.limit or None, given.threads, given.device, dtype)
    merges = Rows(given.rows / "merges.jsonl", ("recipe", "sources", "split"))
    try:
        if given.only == "search":
            search(bench, merges, adapters, given)
        if given.joint is not None:
            joint(bench, merges, given.joint, given.split)
        if given.only in (None, "sources"):
            sources(bench, Rows(given.rows / "sources.jsonl", ("source", "split")), adapters, given.split)
        if given.only in (None, "ours"):
            ours(bench, merges, given, adapters, end)
        if given.only == "first":
            first_choices(bench, merges, given, adapters)
        if given.only in (None, "peft"):
            peft(bench, merges, adapters, given.split, end)
    except MergingError as error:
        raise SystemExit(f"{error}\nnext: {error.next_step}") from error


if __name__ == "__main__":
    main()
