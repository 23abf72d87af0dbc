"""What is wrong is said by name, before a weight is written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mcp_server.errors import DiskFull, Incompatible, InputChanged, Malformed, MergingError, NotAModel, NotFound
from tests.engine.synthetic import load, low_rank, random_tensors, run, shapes, write_adapter, write_model


@pytest.fixture
def models(tmp_path: Path) -> Path:
    base = random_tensors(0)
    write_model(tmp_path / "base", base)
    write_model(tmp_path / "one", random_tensors(1, around=base))
    write_model(tmp_path / "two", random_tensors(2, around=base))
    return tmp_path


def recipe(root: Path, method: str = "ties", *, sources: tuple[str, ...] = ("one", "two"), base: bool = True, **more: Any) -> str:
    """Names become folders of `root`; `one: {...}` in `more` gives that source's parameters."""
    entries = [
        {"model": "+".join(str(root / p) for p in s.split("+")), "parameters": {"weight": 0.5} | more.pop(s, {})} for s in sources
    ]
    body: dict[str, Any] = {"merge_method": method, "models": entries} | more
    return json.dumps(body | ({"base_model": str(root / "base")} if base else {}))


def refused(root: Path, error: type[MergingError], match: str, text: str, **settings: Any) -> None:
    with pytest.raises(error, match=match) as caught:
        run(text, root / "out", **settings)
    assert caught.value.next_step
    assert not list((root / "out").glob("*")) if (root / "out").exists() else True


def test_a_truncated_file(models: Path) -> None:
    file = models / "one" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    refused(models, Malformed, r"one/model\.safetensors .*truncated", recipe(models))


def test_a_file_truncated_after_its_header_was_read(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mcp_server.engine import merge as module

    plan, file = module.make_plan, models / "one" / "model.safetensors"

    def cut(*args: Any) -> Any:
        made = plan(*args)
        file.write_bytes(file.read_bytes()[:-10])
        return made

    monkeypatch.setattr(module, "make_plan", cut)
    with pytest.raises(InputChanged, match=r"one/model\.safetensors ends at byte"):
        run(recipe(models), models / "out")


def test_an_index_that_names_a_missing_shard(models: Path, tmp_path: Path) -> None:
    write_model(tmp_path / "cut", random_tensors(3), shards=2)
    (tmp_path / "cut" / "model-00002-of-00002.safetensors").unlink()
    refused(models, Malformed, "names model-00002-of-00002.safetensors", recipe(models, sources=("one", "cut")))


def test_an_index_that_points_outside_its_folder(models: Path, tmp_path: Path) -> None:
    write_model(tmp_path / "evil", random_tensors(3), shards=2)
    (tmp_path / "evil" / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../base/model.safetensors"}}', "utf-8")
    refused(models, Malformed, "outside its folder", recipe(models, sources=("one", "evil")))


def test_shapes_that_differ(models: Path, tmp_path: Path) -> None:
    wide = random_tensors(3) | {"model.layers.1.mlp.up_proj.weight": np.zeros((5, 12))}
    write_model(tmp_path / "wide", wide)
    refused(
        models,
        Incompatible,
        r"layers\.1\.mlp\.up_proj\.weight is \[16, 12\] in .*one, \[5, 12\]",
        recipe(models, sources=("one", "wide")),
    )


def test_vocabularies_that_differ_go_to_mergekit(models: Path, tmp_path: Path) -> None:
    grown = random_tensors(3) | {"model.embed_tokens.weight": np.zeros((25, 12)), "lm_head.weight": np.zeros((25, 12))}
    write_model(tmp_path / "grown", grown)
    refused(models, Incompatible, r"embed_tokens\.weight is \[20, 12\]", recipe(models, sources=("one", "grown")))


def test_a_different_number_of_layers(models: Path, tmp_path: Path) -> None:
    write_model(tmp_path / "deep", random_tensors(3, layers=5))
    refused(models, Incompatible, "has 5 layers .*has 3 layers", recipe(models, sources=("one", "deep")))


def test_a_layer_range_past_the_end(models: Path) -> None:
    part = {"sources": [{"model": str(models / "one"), "layer_range": [0, 4]}]}
    refused(
        models, Incompatible, r"\[0, 4\] .* exceeds its 3 layers", json.dumps({"merge_method": "passthrough", "slices": [part]})
    )


@pytest.mark.parametrize("density", [-0.1, 1.5, "half"])
def test_densities_out_of_range(models: Path, density: object) -> None:
    refused(models, Malformed, "outside|is not a number", recipe(models, one={"density": density}))


@pytest.mark.parametrize("method", ["linear", "multislerp"])
def test_weights_that_sum_to_zero_where_the_method_divides(models: Path, method: str) -> None:
    refused(models, Malformed, "sum to 0", recipe(models, method, one={"weight": 1}, two={"weight": -1}, base=False))


def test_opposite_weights_are_legitimate_in_task_arithmetic(models: Path) -> None:
    run(recipe(models, "task_arithmetic", one={"weight": 1}, two={"weight": -1}), models / "out")
    base, one, two = (load(models / name) for name in ("base", "one", "two"))
    found, name = load(models / "out"), "model.layers.0.mlp.up_proj.weight"
    assert np.allclose(found[name], base[name] + one[name] - two[name], rtol=2**-7)


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_non_finite_weights_name_tensor_and_source(models: Path, tmp_path: Path, value: float) -> None:
    broken = random_tensors(3)
    broken["model.layers.2.mlp.down_proj.weight"][3, 4] = value
    write_model(tmp_path / "broken", broken)
    text = recipe(models, "task_arithmetic", sources=("one", "broken"))
    with pytest.raises(Malformed, match=r"layers\.2\.mlp\.down_proj\.weight of .*broken holds values that are not finite"):
        run(text, models / "out")
    result = run(text, models / "allowed", allow_nonfinite=True)
    assert result["nonfinite"] == {str(tmp_path / "broken"): 1, "merged": 1}


def test_a_non_finite_adapter(models: Path, tmp_path: Path) -> None:
    factors = low_rank(1, {"model.layers.0.self_attn.q_proj": (12, 12)}, 2)
    factors["model.layers.0.self_attn.q_proj.lora_B.weight"][0, 0] = np.nan
    write_adapter(tmp_path / "lora", factors)
    refused_text = recipe(models, sources=("base+lora", "two"))
    with pytest.raises(Malformed, match=r"q_proj\.weight of .*base\+.*lora holds values that are not finite"):
        run(refused_text, models / "out")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"merge_methd": "ties"}, "unknown key 'merge_methd'.* Did you mean 'merge_method'"),
        ({"one": {"weight": {"value": 1, "fliter": "mlp"}}}, r"models\[0\]\.parameters\.weight has the unknown key 'fliter'"),
        ({"one": {"density": [{"value": 1}, 0.5]}}, "mixes numbers and tables"),
        ({"tokenizer": {"source": "base", "token": {}}}, "unknown key 'token'"),
        ({"slices": [{"sources": []}]}, "exactly one|of models, slices"),
        ({"dtype": "int8"}, "int8"),
    ],
)
def test_recipes_that_are_wrong(models: Path, change: dict[str, Any], match: str) -> None:
    with pytest.raises(MergingError, match=match):
        run(recipe(models, **change), models / "out")


def test_methods_that_need_a_base_say_so(models: Path) -> None:
    refused(models, Malformed, "needs a base_model", recipe(models, base=False))


def test_a_slice_without_the_base_among_its_sources(models: Path) -> None:
    source = {"model": str(models / "one"), "layer_range": [0, 3], "parameters": {"weight": 1}}
    body = {"merge_method": "ties", "base_model": str(models / "base"), "slices": [{"sources": [source]}]}
    refused(models, Malformed, "not among a slice's sources", json.dumps(body))


def test_a_missing_weight(models: Path) -> None:
    body = json.loads(recipe(models))
    del body["models"][0]["parameters"]
    refused(models, Malformed, "no weight is given for .*one", json.dumps(body))


def test_an_empty_value_is_none(models: Path) -> None:
    refused(models, Malformed, r"models\[0\]\.parameters\.weight is empty", recipe(models, one={"weight": None}))


def test_slerp_takes_two(models: Path) -> None:
    refused(models, Incompatible, "takes exactly 2 models", recipe(models, "slerp", parameters={"t": 0.5}))


def test_pickle_is_refused_with_the_command_that_converts(models: Path, tmp_path: Path) -> None:
    (tmp_path / "pickled").mkdir()
    (tmp_path / "pickled" / "config.json").write_text("{}", "utf-8")
    (tmp_path / "pickled" / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(NotAModel, match="pickle") as caught:
        run(recipe(models, sources=("one", "pickled")), models / "out")
    assert "save_pretrained" in caught.value.next_step


def test_packed_weights_of_an_unknown_form_are_refused_by_scheme(models: Path, tmp_path: Path) -> None:
    packed = write_model(tmp_path / "small", random_tensors(3), config={"quantization_config": {"quant_method": "vptq"}})
    file = packed / "model.safetensors"
    file.write_bytes(file.read_bytes().replace(b'"BF16"', b'"I16" '))  # the same bytes, as codes
    refused(models, NotAModel, "quantised by VPTQ", recipe(models, sources=("one", "small")))


def test_a_model_that_is_not_there(models: Path) -> None:
    refused(models, NotFound, "does not exist", recipe(models, sources=("one", "absent")))


def test_too_little_disk_names_the_shortfall(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mcp_server.engine import writer

    monkeypatch.setattr(writer.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 100})())
    refused(models, DiskFull, "GB too little", recipe(models))


def test_sources_of_another_architecture(models: Path, tmp_path: Path) -> None:
    odd = {name.replace("up_proj", "gate"): values for name, values in random_tensors(3).items()}
    write_model(tmp_path / "odd", odd)
    refused(models, Incompatible, "is in .* but not in", recipe(models, sources=("one", "odd")))


def test_an_unknown_parameter_is_a_warning(models: Path) -> None:
    result = run(recipe(models, one={"wieght": 1}), models / "out")
    assert "has no parameter 'wieght'" in result["warnings"][0]
    assert "weight" in result["warnings"][0]


def test_every_shape_is_written_once(models: Path) -> None:
    run(recipe(models), models / "out")
    assert {name: values.shape for name, values in load(models / "out").items()} == shapes()
