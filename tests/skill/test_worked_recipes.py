"""The recipes of others that the references show are valid, and their weights follow from what they say."""

from __future__ import annotations

import itertools
import math
import re
from pathlib import Path

import pytest
import yaml

from mcp_server.steps.validate import validate

PAGE = (Path(__file__).parents[2] / "skills/model-merging/references/strategies.md").read_text(encoding="utf-8")
SECTION = PAGE.split("## Worked recipes of others", 1)[1].split("\n## ", 1)[0]
RECIPES = re.findall(r"```yaml\n(.*?)```", SECTION, re.DOTALL)
FACTORS = {
    "linear": [1 - i / 5 for i in range(1, 5)],
    "cosine": [(1 + math.cos(math.pi * i / 5)) / 2 for i in range(1, 5)],
    "1 − √": [1 - math.sqrt(i / 5) for i in range(1, 5)],
}


def row(decay: str) -> list[list[float]]:
    cells = next(line for line in SECTION.splitlines() if line.startswith(f"| {decay} |")).split("|")[2:4]
    return [[float(value) for value in cell.split(",")] for cell in cells]


@pytest.mark.parametrize("recipe", RECIPES)
def test_each_recipe_has_no_fault_that_its_text_can_show(recipe: str) -> None:
    assert [finding.code for finding in validate(recipe).findings if finding.severity == "error"] == []


@pytest.mark.parametrize("decay", FACTORS)
def test_the_weights_are_those_that_the_decay_asks_for(decay: str) -> None:
    factors, weights = row(decay)
    assert factors == pytest.approx(FACTORS[decay], abs=6e-4)
    assert weights == pytest.approx([1 - factors[0], *(a - b for a, b in itertools.pairwise(factors)), factors[-1]], abs=1.1e-3)
    assert sum(weights) == pytest.approx(1, abs=2e-3)


@pytest.mark.parametrize("decay", FACTORS)
def test_an_average_with_these_weights_is_the_decayed_run(decay: str) -> None:
    """Five checkpoints of a run in numbers: the average equals the run whose steps were scaled by the factors."""
    steps = [0.3, -1.1, 0.7, 0.2]
    checkpoints = [sum(steps[:j]) for j in range(5)]
    factors, weights = row(decay)
    decayed = sum(w * step for w, step in zip(factors, steps, strict=True))
    assert sum(c * there for c, there in zip(weights, checkpoints, strict=True)) == pytest.approx(decayed, abs=5e-3)


def test_the_recipe_carries_the_weights_of_its_table() -> None:
    models = yaml.safe_load(RECIPES[0])["models"]
    assert [model["parameters"]["weight"] for model in models] == row("cosine")[1]
