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
    assert (ROOT / "docs" / "benchmark.md").read_text(encoding="utf-8") == regret.main(regret.PAGES)


def test_what_a_plan_begins_with_was_measured_and_costs_little(regret: ModuleType) -> None:
    found = regret.candidates(regret.PAGES["taskmaster (persona, tools)"])
    best = max(one.least for one in found.values())
    for method in ("ties", "task_arithmetic", "dare_ties", "dare_linear"):
        _, name = regret.begins_with(method)
        assert best - found[name].least <= 8, name


def test_intervals_are_wilsons(regret: ModuleType) -> None:
    assert regret.wilson(0.5, 100) == pytest.approx((0.4038, 0.5962), abs=1e-4)
    assert regret.wilson(1.0, 20) == pytest.approx((0.8389, 1.0), abs=1e-4)
