"""Figures of task vectors, against the same figures computed plainly."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from mcp_server.engine.compare import compare
from tests.engine.synthetic import load, low_rank, random_tensors, write_adapter, write_model

UP = "model.layers.1.mlp.up_proj"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    base = random_tensors(0)
    write_model(tmp_path / "base", base, "float32")
    write_model(tmp_path / "one", random_tensors(1, around=base, size=0.3), "float32", shards=2)
    write_model(tmp_path / "two", random_tensors(2, around=base, size=0.1), "float32")
    write_adapter(tmp_path / "lora", low_rank(3, {UP: (16, 12)}, 2))
    return tmp_path


@pytest.mark.usefixtures("small_blocks")
def test_the_figures_are_what_they_are_called(root: Path) -> None:
    result = compare(str(root / "base"), [str(root / "one"), str(root / "two")], root / "rest.json", lambda *_: None, threads=2)
    base, one, two = (load(root / name) for name in ("base", "one", "two"))
    a, b, r = (np.concatenate([m[n].ravel() for n in base]) for m in (one, two, base))
    a, b = a - r, b - r
    [pair] = result.pairs
    assert pair.between == ("one", "two")
    assert pair.cosine == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b), abs=1e-5)
    assert pair.sign_disagreement == pytest.approx(float((a * b < 0).mean()), abs=1e-5)
    assert pair.norm_ratio == pytest.approx(np.linalg.norm(a) / np.linalg.norm(b), rel=1e-4)
    assert pair.top_overlap == pytest.approx(0.2, abs=0.08)
    assert [s.changed for s in result.sources] == [1.0, 1.0]
    assert result.sources[0].relative_norm == pytest.approx(np.linalg.norm(a) / np.linalg.norm(r), rel=1e-4)
    rest = json.loads(Path(result.path).read_text("utf-8"))
    assert sorted(rest["tensors"]) == sorted(base)
    assert len(result.layers) <= 10
    assert len(result.model_dump_json()) < 8000


def test_adapters_change_only_what_they_adapt(root: Path) -> None:
    result = compare(str(root / "base"), [str(root / "lora"), str(root / "one")], root / "rest.json", lambda *_: None)
    rest = json.loads(Path(result.path).read_text("utf-8"))
    touched = {name for name, figures in rest["tensors"].items() if figures["sources"][0]["norm"] > 0}
    assert touched == {f"{UP}.weight"}
    stored = load(root / "lora")
    delta = 2 * stored[f"base_model.model.{UP}.lora_B.weight"] @ stored[f"base_model.model.{UP}.lora_A.weight"]
    assert rest["tensors"][f"{UP}.weight"]["sources"][0]["norm"] == pytest.approx(np.linalg.norm(delta), rel=1e-5)
    assert [name for name in rest["layers"] if rest["layers"][name]["sources"][0]["norm"]] == ["1"]


def test_a_model_with_itself_agrees_fully(root: Path) -> None:
    twin = root / "twin"
    (root / "one").rename(twin)
    write_model(root / "one", load(twin), "float32")
    [pair] = compare(str(root / "base"), [str(root / "one"), str(twin)], root / "rest.json", lambda *_: None).pairs
    assert (pair.cosine, pair.sign_disagreement, pair.norm_ratio, pair.top_overlap) == (1, 0, 1, 1)


@pytest.mark.usefixtures("small_blocks")
def test_a_sample_says_nearly_the_same(root: Path) -> None:
    refs = [str(root / "one"), str(root / "two")]
    full, sampled = (compare(str(root / "base"), refs, root / "x.json", lambda *_: None, sample=s) for s in (False, True))
    assert sampled.pairs[0].cosine == pytest.approx(full.pairs[0].cosine, abs=0.15)
    assert sampled.sample is True


def test_a_name_beyond_the_first_plane_of_unicode(root: Path) -> None:
    (root / "base").rename(root / "base 🧪")
    result = compare(str(root / "base 🧪"), [str(root / "one"), str(root / "two")], root / "rest.json", lambda *_: None)
    assert [source.name for source in result.sources] == ["one", "two"]
