"""verify on merges whose vocabulary was put together anew: every row is recomputed by its token, with the record and without."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mcp_server.schemas.evidence import Verification
from mcp_server.steps.verify import verify
from tests.engine.synthetic import load, run, save
from tests.engine.test_vocabulary import EMBED, HEAD, WORDS, recipe, write

BLOCKS: dict[str, tuple[dict[str, Any], str, str | None]] = {
    "union, mean of three": ({"source": "union"}, "linear", None),
    "union around a base": ({"source": "union"}, "task_arithmetic", "base"),
    "union by ties": ({"source": "union"}, "ties", "base"),
    "the base's": ({"source": "base"}, "task_arithmetic", "base"),
    "one model's": ({"source": "ONE"}, "linear", None),
    "padded": ({"source": "union", "pad_to_multiple_of": 24}, "linear", None),
    "padded where rows are to spare": ({"source": "base", "pad_to_multiple_of": 24}, "linear", None),
    "tokens": (
        {"source": "union", "tokens": {"<x>": {"source": {"kind": "zero"}}, "a": {"source": "ONE", "force": True}}},
        "linear",
        None,
    ),
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    write(folder / "base", 0, WORDS, rows=16)
    write(folder / "one", 1, WORDS, added=("<x>", "<y>"), rows=16)
    write(folder / "two", 2, [*WORDS[:5], "k", *WORDS[5:]], added=("<y>",))
    return folder


def merged(root: Path, out: Path, kind: str) -> str:
    block, method, base = BLOCKS[kind]
    names = ("base", "one", "two") if base is None else ("one", "two")
    text = recipe(root, names, block, method, base=base).replace('"ONE"', json.dumps(str(root / "one")))
    run(text, out)
    return text


def recomputed(found: Verification) -> tuple[bool | None, str]:
    return next((check.passed, check.detail) for check in found.checks if check.name == "recomputed")


@pytest.mark.parametrize("kind", BLOCKS)
def test_a_right_vocabulary_is_verified(root: Path, tmp_path: Path, kind: str) -> None:
    text = merged(root, tmp_path / "out", kind)
    for full in (False, True):
        found = verify(tmp_path / "out", full=full)
        assert recomputed(found)[0] is True, found
        assert found.verdict != "failed"
    (tmp_path / "out" / "merge_provenance.json").unlink()
    alone = verify(tmp_path / "out", full=True, recipe=text)
    if kind == "padded where rows are to spare":  # another tool would have filled them with the mean
        assert recomputed(alone)[0] is None
    else:
        assert recomputed(alone)[0] is True, alone


def swapped(rows: np.ndarray) -> np.ndarray:
    return np.concatenate([rows[:3], rows[4:5], rows[3:4], rows[5:]])


DAMAGE: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "two tokens swapped": swapped,
    "rows one later": lambda rows: np.roll(rows, 1, 0),
    "a new token is zero": lambda rows: np.concatenate([rows[:13], 0 * rows[13:14], rows[14:]]),
    "new tokens at the mean": lambda rows: np.concatenate([rows[:13], np.repeat(rows[:13].mean(0)[None], len(rows) - 13, 0)]),
    "negated": lambda rows: -rows,
}


@pytest.mark.parametrize("tensor", [EMBED, HEAD])
@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("kind", ["union, mean of three", "union around a base"])
def test_damage_by_token_is_found(root: Path, tmp_path: Path, kind: str, damage: str, tensor: str) -> None:
    text = merged(root, tmp_path / "out", kind)
    values = load(tmp_path / "out")
    save(tmp_path / "out" / "model.safetensors", values | {tensor: DAMAGE[damage](values[tensor])}, "float32")
    (tmp_path / "out" / "merge_provenance.json").unlink()
    found = verify(tmp_path / "out", full=True, recipe=text)
    assert found.verdict == "failed"
    passed, detail = recomputed(found)
    assert passed is False
    assert tensor in detail


def test_a_source_whose_tokens_were_not_mapped_is_found(root: Path, tmp_path: Path) -> None:
    text = merged(root, tmp_path / "out", "union, mean of three")
    values = load(tmp_path / "out")
    rows = [load(root / name)[EMBED] for name in ("base", "one", "two")]
    by_number = sum(part[:13] for part in rows) / 3
    wrong = np.concatenate([by_number, values[EMBED][13:]])
    save(tmp_path / "out" / "model.safetensors", values | {EMBED: wrong}, "float32")
    found = verify(tmp_path / "out", full=True, recipe=text)
    assert (found.verdict, recomputed(found)[0]) == ("failed", False)
    assert EMBED in recomputed(found)[1]


def test_without_tokenizers_the_rows_cannot_be_told(root: Path, tmp_path: Path) -> None:
    text = merged(root, tmp_path / "out", "union, mean of three")
    (tmp_path / "out" / "tokenizer.json").unlink()
    passed, detail = recomputed(verify(tmp_path / "out", full=True, recipe=text))
    assert passed is None
    assert "tokenizer.json" in detail
