"""Merges over GGUF: as the base, as a source and under adapters, against float64 and against verify's own reading."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf.quants import dequantize, quantize

from mcp_server.errors import NotAModel
from mcp_server.formats.checkpoint import open_checkpoint
from mcp_server.formats.provenance import read_provenance
from mcp_server.steps.estimate import estimate
from mcp_server.steps.validate import validate
from mcp_server.steps.verify import verify
from tests.engine.synthetic import Tensors, load, low_rank, run, save, write_adapter
from tests.formats.test_gguf import (
    TINY,
    converted,
    matrices_in,
    stored_model,
    valid_blocks,
    with_config,
    with_embedding,
    write_gguf,
)

MODULES = {
    "model.layers.0.self_attn.q_proj": (64, 64),
    "model.layers.1.self_attn.k_proj": (32, 64),
    "model.layers.1.mlp.up_proj": (96, 64),
}
every_type = pytest.mark.parametrize("kind", ["F16", "Q8_0", "Q4_0", "Q5_0", "Q5_1", "Q4_1"])
WIDE = [
    "Q2_K",
    "Q3_K",
    "Q4_K",
    "Q5_K",
    "Q6_K",
    "IQ1_S",
    "IQ1_M",
    "IQ2_XXS",
    "IQ2_XS",
    "IQ2_S",
    "IQ3_XXS",
    "IQ3_S",
    "IQ4_XS",
    "TQ1_0",
    "TQ2_0",
]
"""Types of 256 values a block; gguf unpacks them all and packs few, so their blocks are random bytes that hold numbers."""


@pytest.fixture
def model(tmp_path: Path) -> tuple[dict[str, Any], Tensors]:
    return stored_model(tmp_path, "llama")


def write(folder: Path, config: dict[str, Any], tensors: Tensors, kind: str) -> Tensors:
    """The model in GGUF under `folder`; returns the values that it stands for."""
    with_config(folder, config | {"dtype": "bfloat16"})
    chosen = matrices_in(kind)
    write_gguf(folder / "model.gguf", "llama", converted("llama", config, tensors), chosen, block_count=2)

    def held(value: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        named = gguf.GGMLQuantizationType[chosen("", value.shape)]
        return dequantize(quantize(value.astype(np.float32), named), named).astype(np.float64)

    return {name: held(value) for name, value in tensors.items()}


def around(tensors: Tensors, seed: int) -> Tensors:
    numbers = np.random.default_rng(seed)
    return {name: (value + 0.05 * numbers.standard_normal(value.shape)).astype(np.float32) for name, value in tensors.items()}


def is_close(out: Path, want: Tensors) -> None:
    """bf16 of what was wanted: half a unit in the last place, and float32's noise."""
    found = load(out)
    assert set(found) == set(want)
    for name, value in want.items():
        assert np.allclose(found[name], value, rtol=2**-8, atol=1e-6), name


@every_type
def test_a_gguf_base_and_a_gguf_source(tmp_path: Path, small_blocks: None, model: Any, kind: str) -> None:
    config, tensors = model
    base = write(tmp_path / "base", config, tensors, kind)
    tuned = write(tmp_path / "tuned", config, around(tensors, 1), kind)
    plain = around(tensors, 2)
    with_config(tmp_path / "plain", config)
    save(tmp_path / "plain" / "model.safetensors", plain, "float32")
    listed = [tmp_path / "tuned" / "model.gguf", tmp_path / "plain"]
    models = [{"model": str(ref), "parameters": {"weight": 0.5}} for ref in listed]
    recipe = {"merge_method": "task_arithmetic", "base_model": str(tmp_path / "base"), "models": models, "dtype": "bfloat16"}
    text = json.dumps(recipe)
    assert validate(text).ok
    run(text, tmp_path / "out")
    deltas = {name: 0.5 * (tuned[name] - value) + 0.5 * (plain[name] - value) for name, value in base.items()}
    is_close(tmp_path / "out", {name: value + deltas[name] for name, value in base.items()})
    found = verify(tmp_path / "out", recipe=text, full=True)
    assert found.verdict == "verified", found
    record = read_provenance(tmp_path / "out")
    assert record is not None
    files = [[file.name for file in source.identity.files] for source in record.sources if source.identity]
    assert files == [["config.json", "model.gguf"], ["config.json", "model.gguf"], ["config.json", "model.safetensors"]]
    assert not list((tmp_path / "out").glob("*.gguf"))


@every_type
def test_adapters_on_a_gguf_base(tmp_path: Path, small_blocks: None, model: Any, kind: str) -> None:
    base = write(tmp_path / "base", *model, kind)
    factors = [low_rank(seed, MODULES, 2) for seed in (1, 2)]
    ref = tmp_path / "base" / "model.gguf"
    adapters = [
        write_adapter(tmp_path / f"a{n}", f, target_modules=["q_proj", "k_proj", "up_proj"]) for n, f in enumerate(factors)
    ]
    models = [{"model": f"{ref}+{adapter}", "parameters": {"weight": 0.25}} for adapter in adapters]
    recipe = {"merge_method": "task_arithmetic", "base_model": str(ref), "models": models, "dtype": "bfloat16"}
    text = json.dumps(recipe)
    assert validate(text).ok
    assert estimate(text).engines["mergekit"].covers is False
    run(text, tmp_path / "out")
    want = dict(base)
    for f in factors:
        for module in MODULES:
            a, b = (f[f"{module}.lora_{letter}.weight"].astype(np.float32).astype(np.float64) for letter in "AB")
            want[f"{module}.weight"] = want[f"{module}.weight"] + 0.25 * 2 * b @ a
    is_close(tmp_path / "out", want)
    found = verify(tmp_path / "out", recipe=text, full=True)
    assert found.verdict == "verified", found


@pytest.mark.parametrize("kind", [*WIDE, "IQ4_NL", "MXFP4", "NVFP4"])
def test_every_other_type_as_base_and_source_and_under_an_adapter(tmp_path: Path, kind: str) -> None:
    named = gguf.GGMLQuantizationType[kind]
    rows, columns = 24, 256
    config = TINY | {"model_type": "qwen2", "vocab_size": rows, "num_hidden_layers": 0, "hidden_size": columns}
    name, per, wide = "model.embed_tokens.weight", *gguf.GGML_QUANT_SIZES[named]
    values = []
    for number in (0, 1):
        blocks = rows * columns // per
        raw = valid_blocks(named, 2 * blocks)[number * blocks : (number + 1) * blocks].reshape(rows, columns // per * wide)
        values.append(dequantize(raw, named).astype(np.float64))
        with_embedding(tmp_path / f"model{number}", config, raw, named)
    base, tuned = (tmp_path / f"model{number}" / "m.gguf" for number in (0, 1))
    a, b = (
        np.random.default_rng(n).standard_normal(shape).astype(np.float32) for n, shape in ((3, (2, rows)), (4, (columns, 2)))
    )
    factors = {
        "base_model.model.model.embed_tokens.lora_embedding_A": a,
        "base_model.model.model.embed_tokens.lora_embedding_B": b,
    }
    (tmp_path / "lora").mkdir()
    save(tmp_path / "lora" / "adapter_model.safetensors", factors, "float32")
    said = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["embed_tokens"], "bias": "none"}
    (tmp_path / "lora" / "adapter_config.json").write_text(json.dumps(said), encoding="utf-8")
    models = [
        {"model": str(tuned), "parameters": {"weight": 0.5}},
        {"model": f"{base}+{tmp_path / 'lora'}", "parameters": {"weight": 0.5}},
    ]
    text = json.dumps({"merge_method": "task_arithmetic", "base_model": str(base), "models": models, "dtype": "float32"})
    run(text, tmp_path / "out")
    want = values[0] + 0.5 * (values[1] - values[0]) + 0.5 * (b.astype(np.float64) @ a).T
    assert np.allclose(load(tmp_path / "out")[name], want, rtol=1e-5, atol=1e-5 * np.abs(want).max())
    found = verify(tmp_path / "out", recipe=text, full=True)
    assert next(check for check in found.checks if check.name == "recomputed").passed, found


@pytest.mark.parametrize(
    ("number", "says"), [(9, "Q8_1"), (41, "Q1_0"), (31, "Q4_0_4_4"), (99, "type 99, which is unknown here")]
)
def test_a_type_that_is_not_read_is_named(tmp_path: Path, model: Any, number: int, says: str) -> None:
    write(tmp_path / "base", *model, "Q8_0")
    file = tmp_path / "base" / "model.gguf"
    data = bytearray(file.read_bytes())
    place = data.index(b"blk.0.attn_q.weight") + len(b"blk.0.attn_q.weight") + 4 + 2 * 8
    data[place : place + 4] = number.to_bytes(4, "little")
    file.write_bytes(bytes(data))
    with pytest.raises(NotAModel, match=says) as raised:
        open_checkpoint(str(file))
    assert "convert the original again" in raised.value.next_step
