"""Published recipes: each gives mergekit's weights or is refused by its reason. `make recipes` runs mergekit itself on all."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.recipes.cases import PUBLISHED, Published, known_by, ours, over, published
from benchmarks.recipes.models import write_models
from mcp_server.engine.coverage import covers
from mcp_server.errors import MergingError

RECIPES = {case.name: case for case in published()}
MADE: dict[str, dict[str, float]] = json.loads((PUBLISHED.parent / "made.json").read_text("utf-8"))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return write_models(tmp_path_factory.mktemp("recipes"))


def reason(case: Published, models: dict[str, str]) -> str:
    """Why the engine does not plan it, or ''."""
    try:
        return "; ".join(covers(over(case, models)))
    except MergingError as refusal:
        return f"{refusal.message} ({refusal.next_step})"


def test_each_is_planned_or_refused_by_its_reason(models: dict[str, str]) -> None:
    assert len(RECIPES) >= 200
    found = {name: reason(case, models) for name, case in RECIPES.items()}
    odd = {name: found[name] for name, case in RECIPES.items() if bool(case.ours) is not bool(found[name])}
    odd |= {name: found[name] for name, case in RECIPES.items() if case.ours not in found[name]}
    assert odd == {}


@pytest.mark.parametrize("name", MADE)
def test_a_sample_has_the_weights_that_mergekit_made(models: dict[str, str], tmp_path: Path, name: str) -> None:
    found = ours(over(RECIPES[name], models), tmp_path / "out")
    assert not isinstance(found, str), found
    known = known_by(found)
    assert known.keys() == MADE[name].keys()
    np.testing.assert_allclose(list(known.values()), list(MADE[name].values()), atol=2e-4)
