"""Bad input stops a merge before anything is written: what was found, what to do, and which kind of error it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from mcp_server.errors import BadInput, Incompatible, Malformed, NotAModel, NotFound
from mcp_server.steps.validate import require_valid
from tests.checkpoints import write_lora, write_model


def linear(*models: Path | str) -> str:
    return "merge_method: linear\nparameters: {weight: 1}\nmodels:\n" + "".join(f"  - model: {model}\n" for model in models)


def test_a_sound_recipe_passes(tmp_path: Path) -> None:
    assert require_valid(linear(write_model(tmp_path / "a"), write_model(tmp_path / "b"))) == []


def test_a_missing_path(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"MM301 at models\[1\].model: .*/b does not exist"):
        require_valid(linear(write_model(tmp_path / "a"), tmp_path / "b"))


def test_a_folder_that_is_not_a_model(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    with pytest.raises(NotAModel, match="it holds nothing") as raised:
        require_valid(linear(write_model(tmp_path / "a"), tmp_path / "b"))
    assert raised.value.next_step


def test_an_adapter_without_its_base(tmp_path: Path) -> None:
    adapter = write_lora(tmp_path / "lora", "org/base")
    with pytest.raises(NotAModel, match="is a LoRA adapter") as raised:
        require_valid(linear(write_model(tmp_path / "a"), adapter))
    assert raised.value.next_step == f"write org/base+{adapter}"


def test_sources_of_different_architecture(tmp_path: Path) -> None:
    models = [write_model(tmp_path / "a"), write_model(tmp_path / "b", architecture="MistralForCausalLM")]
    with pytest.raises(Incompatible, match="architecture LlamaForCausalLM and MistralForCausalLM"):
        require_valid(linear(*models))


def test_a_malformed_recipe() -> None:
    with pytest.raises(Malformed, match="MM101"):
        require_valid("merge_method: [")


def test_what_mergekit_would_do_silently_wrong_is_refused_too(tmp_path: Path) -> None:
    a, b = write_model(tmp_path / "a"), write_model(tmp_path / "b")
    recipe = f"merge_method: karcher\nbase_model: {a}\nmodels: [{{model: {b}}}]\nparameters: {{max_itr: 3}}\n"
    with pytest.raises(BadInput) as raised:
        require_valid(recipe)
    assert sorted(raised.value.details["codes"]) == ["MM205", "MM209"]
    assert "1 more" in raised.value.message
