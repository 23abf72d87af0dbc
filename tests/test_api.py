"""The functions for Python scripts: the same answers as the command line's, and errors that say what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mcp_server import api
from tests.engine.synthetic import HIDDEN, load, random_tensors, write_adapter, write_model


@pytest.fixture
def models(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "work"
    base = random_tensors(0)
    write_model(folder / "base", base)
    for n, name in enumerate(("one", "two"), 1):
        write_model(folder / name, random_tensors(n, around=base))
    attention = "model.layers.0.self_attn.q_proj"
    write_adapter(
        folder / "lora", {f"{attention}.lora_A.weight": np.ones((2, HIDDEN)), f"{attention}.lora_B.weight": np.ones((HIDDEN, 2))}
    )
    monkeypatch.chdir(folder)
    return folder


def recipe(*names: str) -> dict[str, Any]:
    return {
        "merge_method": "linear",
        "models": [{"model": name, "parameters": {"weight": 1.0}} for name in names],
        "dtype": "float32",
    }


def test_a_script_merges_what_it_trained(models: Path) -> None:
    seen: list[str] = []
    assert api.inspect("one", Path("two"), base="base").compatible is True
    assert api.validate(recipe("./one", "./two")).ok
    assert api.estimate(recipe("./one", "./two"), ram_gib=4).engines["stream"].fits is True
    assert not api.validate(recipe("./one", "./two"), output_format="fp8").ok
    assert list(api.estimate(recipe("./base+./lora"), output="adapter").engines) == ["stream"]
    result = api.merge(recipe("./one", "./two"), "merged", on_progress=lambda job: seen.append(job.state))
    assert (result.engine, result.state, Path(result.output)) == ("stream", "succeeded", models / "merged")
    found, parts = load(models / "merged"), [load(models / name) for name in ("one", "two")]
    assert all(np.allclose(found[name], (parts[0][name] + parts[1][name]) / 2, atol=1e-6) for name in found)
    assert set(seen) <= {"queued", "running", "succeeded"} and seen


def test_recipes_are_tables_texts_or_files(models: Path) -> None:
    text = "merge_method: linear\nmodels: [{model: ./one, parameters: {weight: 1}}]\n"
    (models / "recipes").mkdir()
    (models / "recipes" / "r.yml").write_text(text.replace("./one", "../one"), encoding="utf-8")
    assert api.validate(text).ok
    assert api.validate("recipes/r.yml").ok
    assert api.validate(Path("recipes/r.yml")).ok


def test_a_fine_tune_becomes_an_adapter(models: Path) -> None:
    result = api.extract("base", "one", "adapter", rank=12, whole=["embeddings", "norms", "biases"], dtype="float32")
    assert result.relative_error is not None and result.relative_error < 1e-3
    assert (models / "adapter" / "adapter_config.json").is_file()


def test_what_cannot_be_done_says_what_to_do(models: Path) -> None:
    with pytest.raises(api.MergingError) as error:
        api.merge(recipe("./one", "./three"), "merged")
    assert "three" in error.value.message and error.value.next_step
    assert not (models / "merged").exists()
