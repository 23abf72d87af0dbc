"""Tensors are merged by name: several stacks, towers, next-token layers, buffers, other spellings; nothing is invented."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mcp_server.errors import Incompatible, Malformed, MergingError
from mcp_server.formats.safetensors import read_header
from tests.engine.synthetic import Tensors, load, random_tensors, run, save, write_model
from tests.tiny import write_safetensors


def vision(seed: int, around: Tensors | None = None) -> Tensors:
    """A text model and a vision tower, as multimodal checkpoints name them."""
    text = random_tensors(seed)
    tensors = {name.replace("model.", "model.language_model.", 1): values for name, values in text.items()}
    generator = np.random.default_rng(seed + 100)
    tensors |= {f"model.visual.blocks.{n}.attn.qkv.weight": generator.standard_normal((12, 8)) for n in range(2)}
    return {name: around[name] + 0.1 * values for name, values in tensors.items()} if around else tensors


def write_multimodal(folder: Path, tensors: Tensors, **config: Any) -> Path:
    """The text stack's numbers are in text_config."""
    plain = {name.replace("language_model.", ""): values for name, values in tensors.items()}
    write_model(folder, plain)
    settings = json.loads((folder / "config.json").read_text("utf-8"))
    text = {key: settings.pop(key) for key in ("num_hidden_layers", "vocab_size", "hidden_size")}
    settings |= {"architectures": ["EyesForConditionalGeneration"], "model_type": "eyes", "text_config": text} | config
    (folder / "config.json").write_text(json.dumps(settings), "utf-8")
    (folder / "model.safetensors").unlink()
    save(folder / "model.safetensors", tensors, "bfloat16")
    return folder


def recipe(base: Path, *models: Path, method: str = "task_arithmetic", weight: Any = 0.5, **more: Any) -> str:
    entries = [{"model": str(model), "parameters": {"weight": weight}} for model in models]
    return json.dumps({"merge_method": method, "base_model": str(base), "models": entries, "dtype": "float32"} | more)


@pytest.fixture
def eyes(tmp_path: Path) -> Path:
    base = vision(0)
    write_multimodal(tmp_path / "base", base)
    write_multimodal(tmp_path / "one", vision(1, around=base))
    write_multimodal(tmp_path / "two", vision(2, around=base))
    return tmp_path


def test_every_tensor_of_a_multimodal_model_is_merged(eyes: Path) -> None:
    run(recipe(eyes / "base", eyes / "one", eyes / "two"), eyes / "out")
    base, one, two, out = (load(eyes / name) for name in ("base", "one", "two", "out"))
    assert set(out) == set(base)
    for name, found in out.items():
        assert np.allclose(found, base[name] + 0.5 * (one[name] - base[name]) + 0.5 * (two[name] - base[name]), atol=1e-6), name


def test_a_gradient_runs_over_the_text_layers(eyes: Path) -> None:
    run(recipe(eyes / "base", eyes / "one", weight=[0.0, 1.0]), eyes / "out")
    base, one, out = (load(eyes / name) for name in ("base", "one", "out"))
    for name, share in {
        "model.language_model.layers.0.mlp.up_proj.weight": 0.0,
        "model.language_model.layers.1.mlp.up_proj.weight": 0.5,
        "model.language_model.layers.2.mlp.up_proj.weight": 1.0,
        "model.visual.blocks.1.attn.qkv.weight": 0.0,
    }.items():
        assert np.allclose(out[name], base[name] + share * (one[name] - base[name]), atol=1e-6), name


def test_a_gradient_that_names_a_tower_runs_over_its_layers(eyes: Path) -> None:
    weight = [{"filter": "visual", "value": [0.0, 1.0]}, {"value": 0.25}]
    run(recipe(eyes / "base", eyes / "one", weight=weight), eyes / "out")
    base, one, out = (load(eyes / name) for name in ("base", "one", "out"))
    for name, share in {"model.visual.blocks.1.attn.qkv.weight": 1.0, "model.language_model.norm.weight": 0.25}.items():
        assert np.allclose(out[name], base[name] + share * (one[name] - base[name]), atol=1e-6), name


def test_a_gradient_over_an_encoder_and_a_decoder_must_name_one(tmp_path: Path) -> None:
    for n, name in enumerate(("base", "one")):
        generator = np.random.default_rng(n)
        names = [f"{side}.block.{layer}.layer.0.wi.weight" for side in ("encoder", "decoder") for layer in range(2)]
        tensors = {name: generator.standard_normal((4, 4)) for name in ("shared.weight", *names)}
        write_model(
            tmp_path / name, random_tensors(n), config={"architectures": ["T5Model"], "model_type": "t5", "num_layers": 2}
        )
        (tmp_path / name / "model.safetensors").unlink()
        save(tmp_path / name / "model.safetensors", tensors, "float32")
    with pytest.raises(Incompatible, match=r"gradient over the layers.*several stacks.*encoder\.block, decoder\.block"):
        run(recipe(tmp_path / "base", tmp_path / "one", weight=[0.0, 1.0]), tmp_path / "out")
    run(recipe(tmp_path / "base", tmp_path / "one"), tmp_path / "plain")
    assert set(load(tmp_path / "plain")) == set(load(tmp_path / "base"))


def test_a_text_model_beside_a_multimodal_base_leaves_the_tower_alone(eyes: Path, tmp_path: Path) -> None:
    text = random_tensors(7)
    write_model(tmp_path / "text", text)
    result = run(recipe(eyes / "base", tmp_path / "text"), eyes / "out")
    base, one, out = load(eyes / "base"), load(tmp_path / "text"), load(eyes / "out")
    name = "model.language_model.layers.2.mlp.up_proj.weight"
    assert np.allclose(out[name], (base[name] + one["model.layers.2.mlp.up_proj.weight"]) / 2, atol=1e-6)
    assert np.array_equal(out["model.visual.blocks.0.attn.qkv.weight"], base["model.visual.blocks.0.attn.qkv.weight"])
    assert any("model.visual.blocks.* (2)" in warning and "only in" in warning for warning in result["warnings"])
    assert any("model.language_model." in warning and "matched" in warning for warning in result["warnings"])


def test_next_token_layers_that_a_fine_tune_left_out_come_from_the_base(tmp_path: Path) -> None:
    base = random_tensors(0)
    write_model(tmp_path / "base", base | {"mtp.layers.0.mlp.up_proj.weight": np.ones((4, 4))})
    write_model(tmp_path / "one", random_tensors(1, around=base))
    result = run(recipe(tmp_path / "base", tmp_path / "one"), tmp_path / "out")
    assert np.array_equal(load(tmp_path / "out")["mtp.layers.0.mlp.up_proj.weight"], np.ones((4, 4)))
    assert any("mtp.layers.*" in warning for warning in result["warnings"])


@pytest.mark.parametrize("lost", ["model.layers.1.mlp.up_proj.weight", "model.norm.weight", "lm_head.weight"])
@pytest.mark.parametrize("whose", ["base", "one"])
def test_a_tensor_that_nothing_explains_is_refused_by_name(tmp_path: Path, lost: str, whose: str) -> None:
    for n, name in enumerate(("base", "one")):
        kept = {key: values for key, values in random_tensors(n).items() if name != whose or key != lost}
        write_model(tmp_path / name, kept, config={"tie_word_embeddings": False})
    with pytest.raises(Incompatible, match=lost) as caught:
        run(recipe(tmp_path / "base", tmp_path / "one"), tmp_path / "out")
    assert whose in str(caught.value)


def test_a_head_that_the_class_ties_is_the_embedding(tmp_path: Path) -> None:
    """gemma's class ties when its config leaves the flag out, llama's does not."""
    for n, (name, kind) in enumerate((("own", "gemma"), ("gemma", "gemma"), ("llama", "llama"))):
        tensors = random_tensors(n, head=name == "own")
        write_model(tmp_path / name, tensors, config={"model_type": kind})
        config = json.loads((tmp_path / name / "config.json").read_text("utf-8"))
        del config["tie_word_embeddings"]
        (tmp_path / name / "config.json").write_text(json.dumps(config), "utf-8")
    run(recipe(tmp_path / "own", tmp_path / "gemma"), tmp_path / "out")
    own, tied, out = (load(tmp_path / name) for name in ("own", "gemma", "out"))
    assert np.allclose(out["lm_head.weight"], (own["lm_head.weight"] + tied["model.embed_tokens.weight"]) / 2, atol=1e-6)
    assert json.loads((tmp_path / "out/config.json").read_text("utf-8"))["tie_word_embeddings"] is False
    with pytest.raises(MergingError, match="lm_head"):
        run(recipe(tmp_path / "own", tmp_path / "llama"), tmp_path / "no")


def test_names_without_their_prefix_are_matched(tmp_path: Path) -> None:
    base = random_tensors(0)
    write_model(tmp_path / "base", base)
    bare = {name.removeprefix("model."): values for name, values in random_tensors(1, around=base).items()}
    write_model(tmp_path / "one", random_tensors(1, around=base))
    (tmp_path / "one" / "model.safetensors").unlink()
    save(tmp_path / "one" / "model.safetensors", bare, "bfloat16")
    run(recipe(tmp_path / "base", tmp_path / "one", weight=1.0), tmp_path / "out")
    one, out = load(tmp_path / "one"), load(tmp_path / "out")
    assert all(np.allclose(values, one[name.removeprefix("model.")], atol=1e-6) for name, values in out.items())


@pytest.mark.parametrize("wrap", [lambda n: f"module.{n}", lambda n: n.replace("model.", "model._orig_mod.", 1)])
def test_what_a_wrapper_left_in_names_is_taken_out(tmp_path: Path, wrap: Any) -> None:
    base = random_tensors(0)
    write_model(tmp_path / "base", base)
    write_model(tmp_path / "one", base)
    save(tmp_path / "one" / "model.safetensors", {wrap(name): 2 * values for name, values in base.items()}, "bfloat16")
    run(recipe(tmp_path / "base", tmp_path / "one", weight=1.0), tmp_path / "out")
    stored, out = load(tmp_path / "base"), load(tmp_path / "out")
    assert set(out) == set(stored)
    assert all(np.allclose(out[name], 2 * stored[name], rtol=2**-7) for name in out)


def test_buffers_and_integers_are_the_bases_byte_for_byte(tmp_path: Path) -> None:
    extra: dict[str, tuple[str, list[int], bytes]] = {
        "model.layers.0.self_attn.rotary_emb.inv_freq": ("F32", [2], np.array([1.0, 0.333333], np.float32).tobytes()),
        "model.position_ids": ("I64", [1, 3], np.arange(3).tobytes()),
        "model.mask": ("BOOL", [3], bytes([1, 0, 1])),
    }
    weight = {"model.layers.0.mlp.up_proj.weight": ("F64", [2, 2], np.array([1.0, 2.0, 3.0, 4.0]).tobytes())}
    config = {"architectures": ["Odd"], "model_type": "odd", "num_hidden_layers": 1, "torch_dtype": "float64"}
    for name, more in (("base", {}), ("one", {"model.position_ids": ("I64", [1, 3], np.arange(3, 6).tobytes())})):
        (tmp_path / name).mkdir()
        write_safetensors(tmp_path / name / "model.safetensors", weight | extra | more)
        (tmp_path / name / "config.json").write_text(json.dumps(config), "utf-8")
    result = run(recipe(tmp_path / "base", tmp_path / "one", dtype="bfloat16"), tmp_path / "out")
    header, raw = read_header(tmp_path / "out/model.safetensors"), (tmp_path / "out/model.safetensors").read_bytes()
    for name, (dtype, _, stored) in extra.items():
        info = header.tensors[name]
        assert (info.dtype, raw[header.data_start + info.begin : header.data_start + info.end]) == (dtype, stored), name
    assert header.tensors["model.layers.0.mlp.up_proj.weight"].dtype == "BF16"
    assert any("position_ids" in warning and "differ" in warning for warning in result["warnings"])
    assert any("float64" in warning for warning in result["warnings"])


def test_packed_integers_are_no_buffers(tmp_path: Path) -> None:
    for name in ("base", "one"):
        write_model(tmp_path / name, random_tensors(0))
        tensors = {"model.layers.0.qweight": ("I32", [4], bytes(16)), "model.layers.0.a.weight": ("F32", [1], bytes(4))}
        write_safetensors(tmp_path / name / "model.safetensors", tensors)
        config = {"architectures": ["Odd"], "model_type": "odd", "num_hidden_layers": 1}
        (tmp_path / name / "config.json").write_text(json.dumps(config), "utf-8")
    with pytest.raises(MergingError, match=r"qweight|packed|quantised"):
        run(recipe(tmp_path / "base", tmp_path / "one"), tmp_path / "out")


@pytest.mark.parametrize("method", ["linear", "task_arithmetic"])
def test_an_overflow_of_the_output_names_tensor_and_source(tmp_path: Path, method: str) -> None:
    base = random_tensors(0)
    write_model(tmp_path / "base", base, "float32")
    large = {name: values + (90_000 if name.endswith("1.mlp.up_proj.weight") else 0) for name, values in base.items()}
    write_model(tmp_path / "large", large, "float32")
    text = recipe(tmp_path / "base", tmp_path / "large", method=method, weight=1.0, dtype="float16")
    text = text.replace('"models": [', f'"models": [{{"model": "{tmp_path / "base"}", "parameters": {{"weight": 0.0}}}}, ', 1)
    with pytest.raises(Malformed, match=r"layers\.1\.mlp\.up_proj\.weight overflows float16.*large"):
        run(text, tmp_path / "out")
    assert run(text, tmp_path / "allowed", allow_nonfinite=True)["nonfinite"]["merged"] > 0
