"""What lies beside weights and config reaches the output, and the end of turn is the fine-tune's, or its difference is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.engine.synthetic import random_tensors, run, write_model

FILES = (
    "preprocessor_config.json", "processor_config.json", "tekken.json", "words.tiktoken", "sentencepiece.bpe.model",
    "modeling_own.py",    "chat_template.jinja", "tokenizer.model.v3", "1_Pooling/config.json",
)  # fmt: skip


@pytest.fixture
def models(tmp_path: Path) -> Path:
    base = random_tensors(0)
    for n, name in enumerate(("base", "one", "two")):
        folder = write_model(tmp_path / name, random_tensors(n, around=base))
        (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"a": 0, "b": 1, "c": 2}}}), "utf-8")
        (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "a" if name == "base" else "b"}), "utf-8")
    return tmp_path


def recipe(root: Path, *names: str, **more: Any) -> str:
    entries = [{"model": str(root / name), "parameters": {"weight": 0.5}} for name in names]
    body = {"merge_method": "task_arithmetic", "base_model": str(root / "base"), "models": entries}
    return json.dumps(body | more)


def table(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return found


def test_every_file_that_a_loader_may_read_travels(models: Path) -> None:
    base = models / "base"
    (base / "1_Pooling").mkdir()
    for name in FILES:
        (base / name).write_text("{}", "utf-8")
    (base / "modules.json").write_text(json.dumps([{"path": ""}, {"path": "1_Pooling"}, {"path": "../one"}]), "utf-8")
    for name in (
        "README.md",
        "LICENSE.txt",
        "trainer_state.json",
        "optimizer.pt",
        ".hidden.json",
        "model.safetensors.index.json.bak",
    ):
        (base / name).write_text("x", "utf-8")
    run(recipe(models, "one", tokenizer_source="base"), models / "out")
    there = {str(path.relative_to(models / "out")) for path in (models / "out").rglob("*") if path.is_file()}
    assert there == {
        *FILES, "modules.json", "tokenizer.json", "tokenizer_config.json", "config.json", "model.safetensors", "README.md",
        "merge_provenance.json", "mergekit_config.yml",
    }  # fmt: skip


def test_the_end_of_turn_of_fine_tunes_that_agree_is_kept(models: Path) -> None:
    for name in ("one", "two"):
        (models / name / "generation_config.json").write_text(json.dumps({"eos_token_id": [0, 1]}), "utf-8")
    result = run(recipe(models, "one", "two"), models / "out")
    assert table(models / "out/tokenizer_config.json")["eos_token"] == "b"
    assert table(models / "out/generation_config.json") == {"eos_token_id": [0, 1]}
    assert any("eos_token b (a)" in warning for warning in result["warnings"])


@pytest.mark.parametrize("change", ["they disagree", "other token ids", "the recipe names the base's tokenizer"])
def test_otherwise_the_bases_stays_and_the_difference_is_named(models: Path, change: str) -> None:
    more = {"tokenizer_source": "base"} if "recipe" in change else {}
    if change == "they disagree":
        (models / "two" / "tokenizer_config.json").write_text(json.dumps({"eos_token": "c"}), "utf-8")
    if change == "other token ids":
        for name in ("one", "two"):
            (models / name / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"a": 1, "b": 0}}}), "utf-8")
    result = run(recipe(models, "one", "two", **more), models / "out")
    assert table(models / "out/tokenizer_config.json")["eos_token"] == "a"
    assert any("eos_token" in warning and "may end its turns otherwise" in warning for warning in result["warnings"])


def test_every_dtype_key_names_what_is_stored(models: Path) -> None:
    config = table(models / "base/config.json")
    config |= {
        "dtype": "bfloat16",
        "text_config": {"dtype": "bfloat16", "torch_dtype": "bfloat16"},
        "vision_config": {"dtype": "x"},
    }
    (models / "base/config.json").write_text(json.dumps(config), "utf-8")
    run(recipe(models, "one", dtype="float16"), models / "out")
    out = table(models / "out/config.json")
    assert (out["dtype"], out["torch_dtype"], out["vision_config"]) == ("float16", "float16", {"dtype": "float16"})
    assert out["text_config"] == {"dtype": "float16", "torch_dtype": "float16"}
