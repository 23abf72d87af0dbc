"""What mergekit wrote is held against what went in: tensors by name, values, and the small files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mcp_server.errors import RunFailed, Unsupported
from mcp_server.formats.checkpoint import open_checkpoint
from mcp_server.formats.recipe import read_recipe
from mcp_server.jobs import engines
from mcp_server.schemas.job import MergeRequest
from mcp_server.workers.mergekit_output import finish
from tests.engine.synthetic import Tensors, random_tensors, write_model

TOWER: Tensors = {f"model.visual.blocks.{n}.qkv.weight": np.ones((4, 4)) for n in range(2)}


def test_every_tensor_and_file_is_digested(tmp_path: Path) -> None:
    out = ended(tmp_path, random_tensors(1), random_tensors(0))
    digests = finish(read_recipe(f"merge_method: karcher\nmodels: [{{model: {tmp_path / 'base'}}}]"), out, allow_nonfinite=False)
    assert (digests.tensors.keys(), digests.files.keys()) == (random_tensors(0).keys(), {"config.json"})
    for name, tensor in open_checkpoint(str(out)).tensors.items():
        assert digests.tensors[name].matches(tensor.file, tensor.offset, tensor.nbytes)
        assert not digests.tensors[name].matches(tensor.file, tensor.offset + 1, tensor.nbytes)


def ended(place: Path, written: Tensors, base: Tensors, *, recipe: str = "", **config: Any) -> Path:
    """A base and what mergekit wrote for it."""
    write_model(place / "base", base)
    out = write_model(place / "out", written, config=config)
    text = recipe or "merge_method: karcher\nmodels: [{model: BASE}]"
    finish(read_recipe(text.replace("BASE", str(place / "base"))), out, allow_nonfinite=False)
    return out


def test_a_language_model_that_was_left_out_fails_by_name(tmp_path: Path) -> None:
    base = random_tensors(0)
    kept = {name: values for name, values in base.items() if ".layers.1." not in name}
    with pytest.raises(RunFailed, match=r"left out 5 of the 18 tensors .*model\.layers\.1\."):
        ended(tmp_path, kept, base)


def test_what_slices_may_drop_and_what_not(tmp_path: Path) -> None:
    base = random_tensors(0)
    slices = "merge_method: passthrough\nslices: [{sources: [{model: BASE, layer_range: [0, 2]}]}]"
    fewer = {name: values for name, values in base.items() if ".layers.2." not in name}
    ended(tmp_path / "right", fewer, base, recipe=slices)
    with pytest.raises(RunFailed, match=r"model\.norm\.weight"):
        ended(tmp_path / "wrong", {n: v for n, v in fewer.items() if n != "model.norm.weight"}, base, recipe=slices)


def test_infinities_fail_by_tensor(tmp_path: Path) -> None:
    base = random_tensors(0)
    with pytest.raises(RunFailed, match=r"up_proj\.weight of the output holds 1 values that are infinite"):
        name, values = "model.layers.0.mlp.up_proj.weight", base["model.layers.0.mlp.up_proj.weight"].copy()
        values[0, 0] = np.inf
        ended(tmp_path, base | {name: values}, base)


def test_small_files_are_completed(tmp_path: Path) -> None:
    base = random_tensors(0)
    write_model(tmp_path / "base", base)
    (tmp_path / "base" / "preprocessor_config.json").write_text("{}", "utf-8")
    out = write_model(tmp_path / "out", base, config={"dtype": "float32", "torch_dtype": "float32", "tie_word_embeddings": True})
    finish(read_recipe(f"merge_method: karcher\nmodels: [{{model: {tmp_path / 'base'}}}]"), out, allow_nonfinite=False)
    config = json.loads((out / "config.json").read_text("utf-8"))
    assert (config["dtype"], config["torch_dtype"], config["tie_word_embeddings"]) == ("bfloat16", "bfloat16", False)
    assert (out / "preprocessor_config.json").is_file()


@pytest.mark.parametrize("engine", ["auto", "mergekit"])
def test_what_mergekit_would_leave_out_is_said_before_a_job_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: Any
) -> None:
    for n, name in enumerate(("one", "two")):
        write_model(tmp_path / name, random_tensors(n) | TOWER)
    asked: list[str] = []
    monkeypatch.setattr(engines, "ask_planner", lambda text, _folder: asked.append(text) or ["it would leave out 2 tensors"])
    recipe = f"merge_method: karcher\ndtype: float64\nmodels: [{{model: {tmp_path / 'one'}}}, {{model: {tmp_path / 'two'}}}]"
    with pytest.raises(Unsupported, match="its planner answers: it would leave out 2 tensors"):
        engines.choose(MergeRequest(recipe=recipe, out=str(tmp_path / "out"), engine=engine))
    assert asked == [recipe]


def test_a_class_with_a_template_is_not_asked_about(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for n, name in enumerate(("one", "two")):
        write_model(tmp_path / name, random_tensors(n))
    monkeypatch.setattr(engines, "ask_planner", lambda *_: pytest.fail("asked"))
    recipe = f"merge_method: karcher\ndtype: float64\nmodels: [{{model: {tmp_path / 'one'}}}, {{model: {tmp_path / 'two'}}}]"
    assert engines.choose(MergeRequest(recipe=recipe, out=str(tmp_path / "out"))).engine == "mergekit"
