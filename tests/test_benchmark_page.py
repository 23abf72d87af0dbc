"""docs/benchmark.md is what its command writes: the rules as they are now, against the figures that were measured."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def regret() -> ModuleType:
    import sys

    spec = importlib.util.spec_from_file_location("regret", ROOT / "benchmarks" / "regret.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["regret"] = module
    spec.loader.exec_module(module)
    return module


def test_the_page_is_what_the_command_writes(regret: ModuleType) -> None:
    assert (ROOT / "docs" / "benchmark.md").read_text(encoding="utf-8") == regret.main()


def test_what_is_said_first_costs_little_on_every_pair(regret: ModuleType) -> None:
    for pair in regret.PAIRS:
        found = pair.candidates()
        _, name = regret.begins_with(pair)
        best = max(one.least for one in found.values())
        _, high = pair.interval(found[name])
        assert best - found[name].least <= 5, pair.name
        assert best <= high, f"{pair.name}: {name} is told apart from the best"


def test_the_scores_of_the_second_pair_are_those_that_its_page_shows(regret: ModuleType) -> None:
    pair = regret.PAIRS[1]
    page = (pair.scenario.parent / "README.md").read_text(encoding="utf-8")
    for one in pair.candidates().values():
        assert f"| {one.scores['tools']:g} | {one.scores['persona']:g} |" in page.replace("*", ""), one.name


def test_intervals_are_wilsons(regret: ModuleType) -> None:
    assert regret.wilson(0.5, 100) == pytest.approx((0.4038, 0.5962), abs=1e-4)
    assert regret.wilson(1.0, 20) == pytest.approx((0.8389, 1.0), abs=1e-4)
