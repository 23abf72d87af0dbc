"""Merges over packed weights: as base, as source, under an adapter; what does not fit is refused unwritten."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from mcp_server.errors import Malformed, MergingError, NotAModel
from mcp_server.formats.checkpoint import open_checkpoint
from mcp_server.formats.source import inspect_source
from mcp_server.steps.validate import validate
from mcp_server.steps.verify import verify
from tests.engine.synthetic import load, run

NAMES = [f"model.layers.{layer}.{part}.weight" for layer in (0, 1) for part in ("self_attn.q_proj", "mlp.up_proj")]
SHAPES = {"self_attn.q_proj.weight": (64, 64), "mlp.up_proj.weight": (96, 64)}
Tensors = dict[str, torch.Tensor]
Packer = Callable[[str, torch.Tensor], tuple[Tensors, torch.Tensor]]
"""(name, weight) → what is stored, and what it stands for."""


def nf4(name: str, weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    packed, state = quantize_4bit(weight, blocksize=64, compress_statistics=True, quant_type="nf4")
    value = dequantize_4bit(packed, state)
    return {name: packed} | {f"{name}.{key}": part for key, part in state.as_dict(packed=True).items()}, value


def int8(name: str, weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
    from bitsandbytes.functional import int8_vectorwise_dequant

    scale = weight.abs().amax(1)
    codes = (weight / scale[:, None] * 127).round().to(torch.int8)
    return {name: codes, name.replace("weight", "SCB"): scale}, int8_vectorwise_dequant(codes, scale)


def fp8(name: str, weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
    scale = torch.rand((weight.shape[0] // 32, weight.shape[1] // 32)) + 0.01
    spread = scale.repeat_interleave(32, 0).repeat_interleave(32, 1)
    codes = (weight / spread).to(torch.float8_e4m3fn)
    return {name: codes, f"{name}_scale_inv": scale}, codes.float() * spread


def int4(name: str, weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

    groups = weight.reshape(len(weight), -1, 32)
    scale = groups.abs().amax(2) / 7
    codes = (groups / scale[..., None]).round().clamp(-8, 7).to(torch.int8)
    stored = {"_packed": pack_to_int32(codes.reshape(weight.shape), 4), "_scale": scale, "_shape": torch.tensor(weight.shape)}
    return {name + key: part for key, part in stored.items()}, (codes.float() * scale[..., None]).reshape(weight.shape)


PACKERS: dict[str, Packer] = {
    "bitsandbytes nf4": nf4,
    "bitsandbytes int8": int8,
    "FP8 (e4m3)": fp8,
    "compressed-tensors int4": int4,
}
every_format = pytest.mark.parametrize("kind", PACKERS)


def weights(seed: int, around: Tensors | None = None) -> Tensors:
    numbers = torch.Generator().manual_seed(seed)

    def random(name: str, shape: tuple[int, ...]) -> torch.Tensor:
        fresh = torch.randn(shape, generator=numbers) * (0.05 if around else 1.0)
        return fresh + around[name] if around else fresh

    shapes = (
        {"model.embed_tokens.weight": (20, 64)} | {n: SHAPES[n.split(".", 3)[3]] for n in NAMES} | {"model.norm.weight": (64,)}
    )
    return {name: random(name, shape) for name, shape in shapes.items()}


def write(folder: Path, tensors: Tensors, pack: Packer | None = None, **config: Any) -> Tensors:
    """A two-layer model, its matrices packed; returns the values that it stands for."""
    folder.mkdir(parents=True)
    stored: Tensors = {}
    values: Tensors = {}
    for name, tensor in tensors.items():
        if pack and name in NAMES:
            parts, values[name] = pack(name, tensor)
            stored |= parts
        else:
            stored[name] = values[name] = tensor.bfloat16()
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    settings = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "vocab_size": 20,
        "intermediate_size": 96,
        "num_hidden_layers": 2, "num_attention_heads": 2, "tie_word_embeddings": True, "dtype": "bfloat16",
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(settings | config), encoding="utf-8")
    return values


def write_adapter(folder: Path, seed: int) -> Tensors:
    """Rank 2 with scale 2 on every matrix; returns ΔW by name, in float64."""
    folder.mkdir(parents=True)
    numbers = torch.Generator().manual_seed(seed)
    factors: Tensors = {}
    deltas: Tensors = {}
    for name in NAMES:
        rows, columns = SHAPES[name.split(".", 3)[3]]
        a, b = torch.randn((2, columns), generator=numbers) * 0.1, torch.randn((rows, 2), generator=numbers) * 0.1
        stem = f"base_model.model.{name.removesuffix('.weight')}"
        factors |= {f"{stem}.lora_A.weight": a, f"{stem}.lora_B.weight": b}
        deltas[name] = 2 * (b.double() @ a.double())
    save_file(factors, folder / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "up_proj"], "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return deltas


def arithmetic(base: Path, *models: str | Path, weight: float = 0.5) -> str:
    entries = [{"model": str(model), "parameters": {"weight": weight}} for model in models]
    return json.dumps({"merge_method": "task_arithmetic", "base_model": str(base), "models": entries, "dtype": "bfloat16"})


def is_close(out: Path, want: dict[str, torch.Tensor]) -> None:
    """bf16 of what was wanted: half a unit in the last place, and float32's noise."""
    found = load(out)
    assert [*found] and set(found) == set(want)
    for name, value in want.items():
        wanted = value.double().numpy()
        assert np.allclose(found[name], wanted, rtol=2**-8, atol=1e-6), name


@every_format
def test_a_packed_base_and_a_packed_source(tmp_path: Path, small_blocks: None, kind: str) -> None:
    pack = PACKERS[kind]
    plain = weights(0)
    base = write(tmp_path / "base", plain, pack, quantization_config={"quant_method": "x"})
    tuned = write(tmp_path / "tuned", weights(1, plain), pack)
    full = write(tmp_path / "full", weights(2, plain))
    text = arithmetic(tmp_path / "base", tmp_path / "tuned", tmp_path / "full")
    assert validate(text).ok
    run(text, tmp_path / "out")
    is_close(
        tmp_path / "out", {n: v.double() + 0.5 * (tuned[n].double() - v) + 0.5 * (full[n].double() - v) for n, v in base.items()}
    )
    config = json.loads((tmp_path / "out" / "config.json").read_text("utf-8"))
    assert ("quantization_config" in config, config["dtype"]) == (False, "bfloat16")
    found = verify(tmp_path / "out", recipe=text, full=True)
    assert found.verdict == "verified", found


@every_format
def test_adapters_on_a_packed_base(tmp_path: Path, small_blocks: None, kind: str) -> None:
    base = write(tmp_path / "base", weights(0), PACKERS[kind])
    deltas = [write_adapter(tmp_path / f"a{seed}", seed) for seed in (1, 2)]
    text = arithmetic(tmp_path / "base", *(f"{tmp_path / 'base'}+{tmp_path / a}" for a in ("a1", "a2")))
    assert validate(text).ok
    run(text, tmp_path / "out")
    is_close(tmp_path / "out", {n: v.double() + sum(0.5 * d[n] for d in deltas if n in d) for n, v in base.items()})


@every_format
def test_inspect_names_the_format_and_the_true_size(tmp_path: Path, kind: str) -> None:
    write(tmp_path / "base", weights(0), PACKERS[kind])
    write(tmp_path / "full", weights(0))
    packed, full = inspect_source(str(tmp_path / "base")), inspect_source(str(tmp_path / "full"))
    assert (packed.kind, kind in packed.detail, packed.is_model) == ("quantised", True, True)
    assert (packed.parameters, packed.tensors, packed.architecture_hash) == (
        full.parameters,
        full.tensors,
        full.architecture_hash,
    )
    assert packed.bytes is not None and full.bytes is not None and packed.bytes < full.bytes


Q = "model.layers.0.self_attn.q_proj.weight"
QUANT_STATE = f"{Q}.quant_state.bitsandbytes__nf4"


def state(**change: Any) -> Callable[[Tensors], Tensors]:
    def edit(tensors: Tensors) -> Tensors:
        said = json.loads(bytes(tensors[QUANT_STATE].tolist())) | change
        return tensors | {QUANT_STATE: torch.tensor(list(json.dumps(said).encode()), dtype=torch.uint8)}

    return edit


def without(name: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {key: value for key, value in tensors.items() if key != name}


def cut(name: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: tensors | {name: tensors[name][:-1].contiguous()}


@pytest.mark.parametrize(
    ("kind", "edit", "error", "says"),
    [
        ("bitsandbytes nf4", without(QUANT_STATE), Malformed, "quant_state.bitsandbytes__nf4, which says"),
        ("bitsandbytes nf4", without(f"{Q}.absmax"), Malformed, "absmax is not there"),
        ("bitsandbytes nf4", without(f"{Q}.quant_map"), Malformed, "quant_map is not there"),
        ("bitsandbytes nf4", without(f"{Q}.nested_absmax"), Malformed, "nested_absmax is not there"),
        ("bitsandbytes nf4", cut(f"{Q}.absmax"), Malformed, "should be U8 .64."),
        ("bitsandbytes nf4", cut(Q), Malformed, "should be 2048 bytes"),
        ("bitsandbytes nf4", state(blocksize=0), Malformed, "no shape and block size"),
        ("bitsandbytes nf4", state(shape=[64, 65]), Malformed, "should be 2080 bytes"),
        ("bitsandbytes nf4", state(nested_offset=None), Malformed, "offset None"),
        ("bitsandbytes int8", cut(Q.replace("weight", "SCB")), Malformed, "should be .* one for each row"),
        ("bitsandbytes int8", without(Q.replace("weight", "SCB")), NotAModel, "not known here: .*I8"),
        ("FP8 (e4m3)", without(f"{Q}_scale_inv"), Malformed, "no .*_scale or"),
        ("FP8 (e4m3)", lambda t: t | {f"{Q}_scale_inv": torch.ones(3, 5)}, Malformed, "does not divide"),
        ("FP8 (e4m3)", lambda t: t | {f"{Q}_scale_inv": torch.ones(63)}, Malformed, "for each row"),
        ("compressed-tensors int4", without(f"{Q}_scale"), Malformed, "_scale is not there"),
        ("compressed-tensors int4", without(f"{Q}_shape"), Malformed, "_shape is not there"),
        ("compressed-tensors int4", lambda t: t | {f"{Q}_shape": torch.tensor([64, 63])}, Malformed, "do not divide"),
        ("compressed-tensors int4", lambda t: t | {f"{Q}_shape": torch.tensor([64, 640])}, Malformed, "_packed .* should be"),
        ("compressed-tensors int4", lambda t: t | {f"{Q}_scale": torch.ones(64, 3)}, Malformed, "do not divide"),
        (
            "compressed-tensors int4",
            lambda t: t | {f"{Q}_g_idx": torch.full((64,), 2, dtype=torch.int32)},
            Malformed,
            "names groups 2 to 2",
        ),
    ],
)  # fmt: skip
def test_parts_that_do_not_fit_are_named_before_anything_is_written(
    tmp_path: Path, kind: str, edit: Callable[[Tensors], Tensors], error: type[MergingError], says: str
) -> None:
    write(tmp_path / "base", weights(0))
    write(tmp_path / "tuned", weights(1), PACKERS[kind])
    file = tmp_path / "tuned" / "model.safetensors"
    save_file(edit(load_file(file)), file)
    text = arithmetic(tmp_path / "base", tmp_path / "tuned")
    with pytest.raises(error, match=says) as raised:
        run(text, tmp_path / "out")
    assert raised.value.next_step
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())
    with pytest.raises((error, NotAModel), match=says):
        open_checkpoint(str(tmp_path / "tuned"))
    assert not validate(text).ok


@pytest.mark.parametrize(
    ("parts", "scheme"),
    [
        ({"W_q": torch.uint8, "meta": torch.float32}, "HQQ"),
        ({"codes": torch.int16, "codebooks": torch.float32}, "AQLM"),
        ({"indices": torch.int32, "centroids": torch.float32}, "VPTQ"),
        ({"weight._data": torch.int8, "weight._scale": torch.float32}, "optimum-quanto"),
        ({"trellis": torch.int16, "suh": torch.float32}, "EXL3"),
        ({"weight": torch.int16}, "not known"),
    ],
)
def test_a_format_that_is_not_read_is_named_with_the_tool_that_reads_it(
    tmp_path: Path, parts: dict[str, torch.dtype], scheme: str
) -> None:
    write(tmp_path / "base", weights(0))
    folder = tmp_path / "base"
    stem = Q.removesuffix("weight")
    tensors = load_file(folder / "model.safetensors")
    del tensors[Q]
    save_file(
        tensors | {stem + part: torch.ones((4, 4)).to(dtype) for part, dtype in parts.items()}, folder / "model.safetensors"
    )
    with pytest.raises(NotAModel, match=scheme) as raised:
        run(arithmetic(folder, folder), tmp_path / "out")
    assert raised.value.next_step
