"""A merge into memory hands over the bytes that a merge to disk writes, and says when a loaded donor cannot take them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mcp_server.engine.in_memory import InMemory
from mcp_server.engine.merge import merge
from mcp_server.engine.plan import TensorPlan
from mcp_server.engine.request import Request
from mcp_server.errors import Malformed
from tests import tiny

SEED = 7


def silent(*_: Any) -> None:
    """Progress that nobody reads."""


def recipe(place: Path, method: str, **parameters: Any) -> str:
    base = str(place / "base")
    models = [
        {"model": str(place / "one"), "parameters": {"weight": 0.7}},
        {"model": f"{base}+{place / 'adapter'}", "parameters": {"weight": 0.5}},
    ]
    data = {"merge_method": method, "models": models, "dtype": "bfloat16", "parameters": parameters}
    return json.dumps(data if method == "linear" else {**data, "base_model": base})


@pytest.fixture
def place(tmp_path: Path) -> Path:
    tiny.write_model(tmp_path / "base")
    tiny.write_model(tmp_path / "one", seed=1)
    tiny.write_adapter(tmp_path / "adapter", tmp_path / "base")
    return tmp_path


def in_memory(text: str) -> dict[str, bytes]:
    found: dict[str, bytes] = {}

    def take(tensor: TensorPlan, raw: np.ndarray[Any, Any]) -> None:
        found[tensor.name] = raw.tobytes()

    InMemory(text, SEED).run(take, silent, threads=2)
    return found


def on_disk(text: str, folder: Path) -> dict[str, bytes]:
    folder.mkdir()
    merge(Request(recipe=text, folder=folder, journal=folder.with_suffix(".journal"), seed=SEED), silent)
    raw = (folder / "model.safetensors").read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8:start])
    places = {name: entry["data_offsets"] for name, entry in header.items() if name != "__metadata__"}
    return {name: raw[start + begin : start + end] for name, (begin, end) in places.items()}


@pytest.mark.parametrize(
    ("method", "parameters"),
    [
        ("linear", {}),
        ("task_arithmetic", {"lambda": 0.8}),
        ("ties", {"density": 0.5}),
        ("dare_ties", {"density": 0.5}),
    ],
)
def test_the_bytes_are_those_that_a_merge_writes(place: Path, method: str, parameters: dict[str, Any]) -> None:
    text = recipe(place, method, **parameters)
    assert in_memory(text) == on_disk(text, place / "out")


def test_a_merge_that_keeps_its_donors_form_can_be_taken(place: Path) -> None:
    assert InMemory(recipe(place, "task_arithmetic"), SEED).differs_from_donor() is None


def test_a_config_a_template_or_turns_of_its_own_are_named(place: Path) -> None:
    text = recipe(place, "task_arithmetic")
    templated = json.dumps(json.loads(text) | {"chat_template": "{{ messages }}"})
    assert "tokenizer" in str(InMemory(templated, SEED).differs_from_donor())
    (place / "one" / "generation_config.json").write_text('{"eos_token_id": 5}', encoding="utf-8")
    assert "end their turns" in str(InMemory(text, SEED).differs_from_donor())


def test_what_decides_the_bytes_decides_the_fingerprint(place: Path) -> None:
    prints = {InMemory(recipe(place, "ties", density=density), seed).fingerprint for density in (0.5, 0.6) for seed in (1, 2)}
    assert len(prints) == 4


def test_a_source_that_is_not_finite_is_refused_as_on_disk(place: Path) -> None:
    file = place / "one" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-2] + b"\xc0\x7f")
    with pytest.raises(Malformed, match="not finite"):
        in_memory(recipe(place, "task_arithmetic"))
