"""The six skills' benchmark: a shortened run on a tiny model, and the figures of its page from rows that were made up."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.six_skills.measured import Table, spearman, worked
from benchmarks.six_skills.page import line, page, searched, summary, title
from benchmarks.six_skills.recipes import MANY, MERGEKIT, NAMES, OURS, as_measured, first
from mcp_server.steps.recommend import plan_for


@pytest.fixture
def table(tmp_path: Path) -> Table:
    def alone(name: str, scores: dict[str, float]) -> dict[str, Any]:
        shown = {context: {n: 0.9 if n == name == "terse" else 0.0 for n in NAMES} for context in (*NAMES, "general")}
        held = {n: scores.get(n, 0.0) for n in NAMES}
        row = {"source": name, "split": "dev", "scores": held, "n": dict.fromkeys(NAMES, 40), "perplexity": 30.0, "shown": shown}
        return row | {"seconds": 1}

    def merge(recipe: str, terse: float, notes: float) -> dict[str, Any]:
        scores = {"terse": terse, "notes": notes}
        n = dict.fromkeys(scores, 40)
        return {"recipe": recipe, "sources": list(scores), "split": "dev", "scores": scores, "n": n, "perplexity": 33.0}

    rows = {
        "sources.jsonl": [alone("base", {"terse": 0.2}), *(alone(name, {name: 1.0}) for name in NAMES)],
        "merges.jsonl": [
            merge("task_arithmetic lambda=1.0", 0.6, 0.9),
            merge("ties lambda=1.0", 1.0, 0.75),
            merge("peft svd", 1.0, 1.0),
            merge("ties lambda=1.0", 0.0, 0.0) | {"split": "test"},
        ],
        "advice.jsonl": [
            {"sources": ["terse", "notes"], "cosines": {"terse notes": 0.01}, "norms": {"terse": 2.0, "notes": 3.0}}
        ],
    }
    for name, lines in rows.items():
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in lines), encoding="utf-8")
    return Table("dev", tmp_path)


def test_gains_count_from_the_base_and_the_pair_is_as_good_as_its_worse_skill(table: Table) -> None:
    held = table.measured(("terse", "notes"))
    assert {recipe: table.gains(row) for recipe, row in held.items()} == {
        "task_arithmetic lambda=1.0": {"terse": pytest.approx(50), "notes": pytest.approx(90)},
        "ties lambda=1.0": {"terse": pytest.approx(100), "notes": pytest.approx(75)},
    }
    assert table.best(("terse", "notes")) == ("ties lambda=1.0", pytest.approx(75))
    low, high = table.interval(held["ties lambda=1.0"])
    assert (low, high) == (pytest.approx(59.8, abs=0.1), pytest.approx(85.8, abs=0.1))


def test_the_first_choice_follows_the_rules_and_the_cross_context_check(table: Table) -> None:
    group = ("terse", "notes")
    assert table.leak(group) == 0.9
    assert table.chosen(group, cross=False) == ("task_arithmetic lambda=1.0", pytest.approx(50))
    asked = plan_for(as_measured(group, {"terse notes": 0.01}, {"terse": 2.0, "notes": 3.0}, table.cross()))
    assert table.chosen(group, cross=True)[0] == first(asked)


def test_the_leak_of_both_is_the_lower_direction(table: Table) -> None:
    assert (table.both(("terse", "notes")), table.leak(("terse", "notes"))) == (0.0, 0.9)
    table.alone["notes"]["shown"]["terse"]["notes"] = 0.75
    assert table.both(("terse", "notes")) == 0.75
    assert table.chosen(("terse", "notes"), cross=True) == ("no merge", None)
    assert summary(table).splitlines()[2:] == [
        "| the files alone | 1 | 0 | 25 | 25 | 0 | 0 |",
        "| and the cross-context check | 0 | 0 |  |  | 1 | 1 |",
    ]
    assert not worked(table, ("terse", "notes"))


def test_the_search_on_the_test_split_stands_beside_what_recommend_begins_with(table: Table) -> None:
    assert searched(table, Table("test", table.folder)) == ""
    sources = table.folder / "sources.jsonl"
    with sources.open("a", encoding="utf-8") as file:
        for row in [*table.alone.values()]:
            file.write(json.dumps(row | {"split": "test"}) + "\n")
    with (table.folder / "merges.jsonl").open("a", encoding="utf-8") as file:
        row = {"sources": ["terse", "notes"], "split": "test", "n": {"terse": 40, "notes": 40}, "perplexity": 33.0}
        found = {"recipe": "search", "scores": {"terse": 0.92, "notes": 0.95}, "chosen": "ties density=0.4", "dev": {"tried": 30}}
        first_ = {"recipe": table.chosen(("terse", "notes"), cross=True)[0], "scores": {"terse": 0.6, "notes": 0.9}}
        file.writelines(json.dumps(row | more) + "\n" for more in (found, first_))
    text = searched(table, Table("test", table.folder))
    assert "median 40, worst 40 points over 1 groups" in text and "says not to (0)" in text
    assert "| ties density=0.4 | 30 | 90 (74 to 96) | 40 |" in text
    table.alone["notes"]["shown"]["terse"]["notes"] = 0.75  # now both answer the other's prompts
    assert "says not to (1), the search keeps less than 80 % of some skill in 0" in searched(table, Table("test", table.folder))


def test_the_page_is_what_the_command_writes() -> None:
    written = Path(__file__).resolve().parents[2] / "docs" / "six_skills.md"
    assert written.read_text(encoding="utf-8") == page(Table(), Table("test"))


def test_groups_are_in_order_and_named(table: Table) -> None:
    assert [title(group) for group in (*table.groups(), NAMES)] == ["terse + notes", "all six"]
    assert line(["a", 1]) == "| a | 1 |"


def test_rank_correlation_is_spearmans() -> None:
    assert spearman([1.0, 2.0, 3.0, 4.0], [9.0, 8.0, 7.0, 1.0]) == pytest.approx(-1)
    assert spearman([1.0, 2.0, 2.0, 4.0], [1.0, 3.0, 2.0, 4.0]) == pytest.approx(0.9487, abs=1e-4)


@pytest.mark.slow
def test_a_short_run_measures_every_group_by_every_recipe_and_goes_on_where_it_was(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    script = Path(__file__).with_name("six_skills_run.py")
    ran = subprocess.run([sys.executable, str(script), str(tmp_path)], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-3000:]
    found = json.loads(ran.stdout.splitlines()[-1])
    assert found["sources"] == ["base", *found["names"]]
    expected = 19 * len((*OURS, *MERGEKIT)) + 4 * len(MANY)
    assert (found["groups"], found["ours"], found["skills"], found["same"]) == ([2, 3, 6], expected, True, True)
    pair, begun = ["terse", "notes"], len((*OURS, *MERGEKIT))
    assert found["more"] == [["joint adapter", pair, "dev", None], ["search", pair, "test", begun + 2]]
    assert found["chosen"]
    assert found["refused"] == ["peft dare_ties", "peft linear", "peft ties"], "PEFT takes unequal ranks for svd alone"
    assert found["peft"] == ["peft dare_ties", "peft linear", "peft svd", "peft ties"]
    assert found["sum"] <= 1, "a merged weight is the base plus both products, rounded once"
    assert found["counted"] == [0.5, 0.5], "a prompt counts exactly when generate writes its answer"
