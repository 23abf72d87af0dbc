"""What a recipe names that is not here: ids with their revisions, and neither names of stages nor words of the tokenizer."""

from __future__ import annotations

from pathlib import Path

import pytest

from mcp_server.formats.recipe import ModelRef
from mcp_server.formats.recipe.whereabouts import absent_from, placed, places_of
from tests import tiny


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "hub"


def snapshot(cache: Path, name: str, revision: str, commit: str) -> Path:
    folder = cache / f"models--{name.replace('/', '--')}"
    tiny.write_model(folder / "snapshots" / commit)
    (folder / "refs").mkdir()
    (folder / "refs" / revision).write_text(commit, encoding="utf-8")
    return folder / "snapshots" / commit


def test_stages_and_words_of_the_tokenizer_are_not_looked_for(cache: Path) -> None:
    recipe = "name: first\nmerge_method: linear\ntokenizer: {source: union}\nmodels:\n  - model: acme/one@v2\n---\n"
    recipe += "merge_method: linear\nbase_model: first\ntokenizer_source: acme/words\nmodels:\n  - model: first+acme/lora\n"
    assert absent_from(recipe) == ["acme/one@v2", "acme/words"]


def test_an_adapter_as_output_needs_no_base(cache: Path) -> None:
    recipe = "merge_method: linear\nbase_model: acme/base\nmodels:\n  - model: acme/base+acme/lora@v1\n"
    assert absent_from(recipe) == ["acme/base", "acme/lora@v1"]
    assert absent_from(recipe, bases=False) == ["acme/lora@v1"]


def test_a_copy_of_the_pinned_revision_stands_for_it_and_another_does_not(cache: Path, tmp_path: Path) -> None:
    there = snapshot(cache, "acme/base", "v2", "b" * 40)
    ref = ModelRef(base="acme/base", revision="v2", adapter="acme/base", adapter_revision="v3")
    places = places_of(ref, tmp_path)
    assert places == {"base": str(there), "adapter": "acme/base"}
    assert placed(ref, places) == ModelRef(base=str(there), adapter="acme/base", adapter_revision="v3")
