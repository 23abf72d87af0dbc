"""What the engine says it cannot do, and that it says so without loading a numeric library."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mcp_server.engine.coverage import covers
from tests.engine.synthetic import random_tensors, write_model


@pytest.fixture
def models(tmp_path: Path) -> Path:
    for n, name in enumerate(("base", "one", "two")):
        write_model(tmp_path / name, random_tensors(n))
        vocabulary = {"a": 0, "b": 1} if name != "two" else {"a": 1, "b": 0}
        (tmp_path / name / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocabulary}}), "utf-8")
    return tmp_path


def recipe(root: Path, names: tuple[str, ...] = ("one",), **more: Any) -> str:
    entries = [{"model": str(root / name), "parameters": {"weight": 1}} for name in names]
    return json.dumps({"merge_method": "ties", "base_model": str(root / "base"), "models": entries} | more)


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({}, None),
        ({"merge_method": "evolve"}, "merge_method evolve is not done by this engine"),
        ({"dtype": "float64"}, "dtype float64"),
        ({"tokenizer": {"source": "union"}}, None),
        ({"tokenizer": {"source": "base", "pad_to_multiple_of": 8}}, None),
        ({"tokenizer": {"source": "base"}}, None),
        ({"tokenizer_source": "base"}, None),
        ({"chat_template": "chatml"}, None),
        ({"chat_template": "auto"}, None),
        ({"chat_template": "{{ messages }}"}, None),
        ({"x-note": "keys of the author's own", "name": "first"}, None),
        ({"base_model": {"model": "here", "override_architecture": "Odd"}}, "override_architecture"),
    ],
)
def test_reasons(models: Path, more: dict[str, Any], reason: str | None) -> None:
    found = covers(recipe(models, **more))
    assert (found == []) if reason is None else (len(found) == 1 and reason in found[0])


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("base_model: b\nexperts: [{source_model: a}]", "mergekit-moe makes mixtures"),
        ("merge_method: linear\nmodels: [{model: a}]\n---\nmerge_method: linear\nmodels: [{model: b}]", "mergekit-multi runs"),
    ],
)
def test_recipes_that_are_no_single_merge(text: str, reason: str) -> None:
    [found] = covers(text)
    assert reason in found


def test_vocabularies_numbered_differently_are_aligned_where_that_is_asked_for(models: Path) -> None:
    assert covers(recipe(models, ("one", "two"), tokenizer={"source": "base"})) == []
    assert covers(recipe(models, ("one", "two"))) == []
    (models / "one" / "tokenizer.json").unlink()
    [reason] = covers(recipe(models, ("one", "two"), tokenizer={"source": "base"}))
    assert "no readable tokenizer.json" in reason


def test_a_model_of_several_stacks_is_covered(models: Path) -> None:
    tensors = random_tensors(5)
    tensors |= {f"vision.{name}": values for name, values in tensors.items() if ".layers." in name}
    write_model(models / "eyes", tensors)
    source = {"model": str(models / "eyes"), "parameters": {"weight": 1}}
    assert covers(json.dumps({"merge_method": "linear", "models": [source]})) == []


def test_asking_loads_no_numeric_library(models: Path) -> None:
    code = (
        "import sys; from mcp_server.engine.coverage import covers; from mcp_server.engine import memory; "
        f"assert covers({recipe(models)!r}) == []; sys.exit(bool({{'numpy', 'numba', 'torch'}} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
