"""The engine's own reading of recipes: whatever the linter would say, planning ends in a plan or in our words."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcp_server.engine.coverage import covers
from mcp_server.engine.plan import make_plan
from mcp_server.errors import MergingError
from mcp_server.formats.recipe import merge_recipe, read_recipe
from tests import tiny
from tests.steps.test_validate_fuzz import changed


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("recipes")
    for seed, name in enumerate("mno"):
        tiny.write_model(place / name, seed)
    tiny.write_adapter(place / "l", place / "m")
    return place


def placed(text: str, folder: Path) -> str:
    """The corpus names its sources ./m and l; here they are real."""
    for name in "mnol":
        text = text.replace(f"./{name}", str(folder / name)).replace(f": {name}\n", f": {folder / name}\n")
    return text


@given(changed(), st.booleans())
def test_any_changed_recipe(folder, text, real):
    recipe = placed(text, folder) if real else text
    for ask in (read_recipe, lambda text: make_plan(merge_recipe(text)), covers):
        try:
            ask(recipe)
        except MergingError as refused:
            assert refused.message
