"""Recipes in mergekit's documented forms come out clean: no error, no warning, whether their models are here or not."""

from __future__ import annotations

from pathlib import Path

import pytest

from mcp_server.steps.validate import validate
from tests.checkpoints import cache_model, write_lora

GOOD = sorted((Path(__file__).parent / "recipes" / "good").glob("*.yml"))
TOKENS = ["<s>", "</s>", "<|im_start|>", "<|special|>", "<|original|>", *(f"t{n}" for n in range(11))]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face cache with every model that the recipes name, four layers each."""
    folder = tmp_path_factory.mktemp("hub")
    for name in ("base", "tuned-a", "tuned-b", "tuned-c"):
        cache_model(folder, f"org/{name}", layers=4, tokens=TOKENS)
    for name in ("adapter-a", "adapter-b"):
        write_lora(folder / f"models--org--{name}" / "snapshots" / "1", "org/base", layers=4)
    return folder


def serious(recipe: Path, folder: Path) -> list[tuple[str, str, str]]:
    found = validate(recipe.read_text(encoding="utf-8"), folder=folder)
    return [(f.code, f.where, f.message) for f in found.findings if f.severity != "note"]


@pytest.mark.parametrize("recipe", GOOD, ids=lambda path: path.stem)
def test_a_documented_form_is_clean_before_anything_is_downloaded(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "empty"))
    assert serious(recipe, tmp_path) == []


@pytest.mark.parametrize("recipe", GOOD, ids=lambda path: path.stem)
def test_a_documented_form_is_clean_with_its_models_present(
    recipe: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(cache))
    assert serious(recipe, tmp_path) == []
    assert validate(recipe.read_text(encoding="utf-8"), folder=tmp_path).level == "checkpoints"
