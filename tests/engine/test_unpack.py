"""Packed weights are read as the libraries that made them read them: each format beside its own implementation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from mcp_server.engine.blocks import split
from mcp_server.engine.reader import Reader
from mcp_server.engine.thread_pool import Workspace
from mcp_server.formats.checkpoint import open_checkpoint
from mcp_server.formats.tensors import StoredTensor
from mcp_server.recompute.reading import read_rows
from tests.engine.packers import numbers_of_4_bits

Tensors = dict[str, torch.Tensor]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def write(folder: Path, tensors: Tensors, **config: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "dtype": "bfloat16"} | config), encoding="utf-8")
    return folder


def read(tensor: StoredTensor) -> np.ndarray:
    """Through the engine's reader, block by block."""
    reader, workspace = Reader(), Workspace()
    out = np.empty(tensor.count, np.float32)
    for block in split(tensor.shape):
        part = np.empty(block.count, np.float32)
        reader.values(tensor, block, workspace, part)
        out[block.start : block.start + block.count] = part
    reader.done_with(tensor)
    reader.close()
    return out.reshape(tensor.shape)


def agrees(folder: Path, want: torch.Tensor, *, name: str = "m.weight", kind: str) -> None:
    """One weight is there, under its own name; the engine's values and verify's are the oracle's (float32)."""
    tensors = open_checkpoint(str(folder)).tensors
    assert [*tensors] == [name]
    stored = tensors[name]
    assert (stored.packed is not None and stored.packed.kind, stored.dtype) == (kind, "BF16")
    values, wanted = read(stored), want.float().numpy()
    assert values.shape == wanted.shape
    assert np.array_equal(values, wanted)
    checked = read_rows(stored, 0, stored.shape[0]).reshape(wanted.shape)
    assert np.allclose(checked, values, rtol=2**-22, atol=0, equal_nan=True)


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("shape", [(64, 96), (7, 33), (300, 1)])
def test_bitsandbytes_4_bits(tmp_path: Path, small_blocks: None, kind: str, nested: bool, shape: tuple[int, int]) -> None:
    from bitsandbytes.functional import quantize_4bit

    weight = torch.randn(shape, generator=generator())
    packed, state = quantize_4bit(weight, blocksize=64, compress_statistics=nested, quant_type=kind)
    want = numbers_of_4_bits(packed, state)
    state.dtype = torch.bfloat16
    folder = write(tmp_path, {"m.weight": packed} | {f"m.weight.{k}": v for k, v in state.as_dict(packed=True).items()})
    agrees(folder, want, kind=f"bitsandbytes {kind}")


def test_bitsandbytes_8_bits(tmp_path: Path, small_blocks: None) -> None:
    from bitsandbytes.functional import int8_vectorwise_dequant

    codes = torch.randint(-127, 128, (40, 21), dtype=torch.int8, generator=generator())
    scale = torch.rand(40, generator=generator())
    layout = torch.zeros((), dtype=torch.uint8)
    folder = write(tmp_path, {"m.weight": codes, "m.SCB": scale, "m.weight_format": layout})
    agrees(folder, int8_vectorwise_dequant(codes, scale), kind="bitsandbytes int8")


def fp8(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(shape, generator=generator()).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
@pytest.mark.parametrize(
    ("shape", "scales", "suffix", "declared"),
    [
        ((24, 40), (), "_scale", None),
        ((24, 40), (1,), "_scale_inv", None),
        ((24, 40), (24, 1), "_scale", None),
        ((24, 40), (24,), "_scale", None),
        ((24, 40), (3, 5), "_scale_inv", [8, 8]),
        ((26, 44), (4, 6), "_scale_inv", [8, 8]),
        ((24, 40), (3, 5), "_scale_inv", None),
        ((200, 260), (2, 3), "_scale_inv", None),
        ((3, 16, 40), (3, 2, 5), "_scale_inv", [8, 8]),
        ((3, 16, 40), (3, 1, 1), "_scale", None),
    ],
)
def test_fp8(
    tmp_path: Path, small_blocks: None, dtype: torch.dtype, shape: tuple[int, ...], scales: tuple[int, ...], suffix: str,
    declared: list[int] | None,
) -> None:  # fmt: skip
    codes, scale = fp8(shape, dtype), torch.rand(scales, generator=generator(1))
    grid = scale.reshape(-1, 1) if scale.dim() == 1 else scale if scale.dim() else scale.reshape(1, 1)
    high, wide = (
        (declared or [128, 128]) if shape[0] == 200 or declared else (shape[-2] // grid.shape[-2], shape[-1] // grid.shape[-1])
    )
    spread = grid.repeat_interleave(high, -2).repeat_interleave(wide, -1)[..., : shape[-2], : shape[-1]]
    config = {"quantization_config": {"quant_method": "fp8", "weight_block_size": declared}} if declared else {}
    folder = write(tmp_path, {"m.weight": codes, f"m.weight{suffix}": scale, "m.input_scale": torch.ones(1)}, **config)
    kind = "FP8 (e4m3)" if dtype == torch.float8_e4m3fn else "FP8 (e5m2)"
    agrees(folder, codes.float() * spread, kind=kind)


def test_fp8_as_transformers_unpacks_it(tmp_path: Path) -> None:
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize

    codes, scale = fp8((256, 384), torch.float8_e4m3fn), torch.rand((2, 3), generator=generator(1))
    want = Fp8Dequantize(None)._dequantize_one(codes, scale, torch.float32)
    agrees(write(tmp_path, {"m.weight": codes, "m.weight_scale_inv": scale}), want, kind="FP8 (e4m3)")


def test_every_code_of_fp8(tmp_path: Path) -> None:
    for dtype in (torch.float8_e4m3fn, torch.float8_e5m2):
        codes = torch.arange(256, dtype=torch.int16).to(torch.uint8).view(dtype).reshape(16, 16)
        folder = write(tmp_path / str(dtype), {"m.weight": codes, "m.weight_scale": torch.ones(1)})
        assert np.array_equal(read(open_checkpoint(str(folder)).tensors["m.weight"]), codes.float().numpy(), equal_nan=True)


def test_mxfp4_of_gpt_oss_is_turned_as_transformers_turns_it(tmp_path: Path, small_blocks: None) -> None:
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    blocks = torch.randint(0, 256, (3, 10, 2, 16), dtype=torch.uint8, generator=generator())
    scales = torch.randint(110, 135, (3, 10, 2), dtype=torch.uint8, generator=generator(1))
    want = convert_moe_packed_tensors(blocks, scales)
    folder = write(tmp_path, {"m.gate_up_proj_blocks": blocks, "m.gate_up_proj_scales": scales})
    agrees(folder, want, name="m.gate_up_proj", kind="MXFP4")


def test_nvfp4_of_compressed_tensors_and_of_modelopt(tmp_path: Path, small_blocks: None) -> None:
    from compressed_tensors.compressors.nvfp4.helpers import unpack_fp4_from_uint8

    codes = torch.randint(0, 256, (12, 32), dtype=torch.uint8, generator=generator())
    scale = torch.rand((12, 4), generator=generator(1)).to(torch.float8_e4m3fn)
    overall = torch.tensor([3.7])
    values = unpack_fp4_from_uint8(codes, 12, 64, torch.float32).reshape(12, 4, 16)
    ours = {
        "m.weight_packed": codes,
        "m.weight_scale": scale,
        "m.weight_global_scale": overall,
        "m.input_global_scale": overall * 2,
    }
    agrees(write(tmp_path / "ct", ours), (values * (scale.float() / overall)[..., None]).reshape(12, 64), kind="NVFP4")
    theirs = {"m.weight": codes, "m.weight_scale": scale, "m.weight_scale_2": overall[0]}
    agrees(write(tmp_path / "mo", theirs), (values * (scale.float() * overall)[..., None]).reshape(12, 64), kind="NVFP4")


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(
    ("groups", "symmetric", "ordered"), [(1, True, False), (4, True, False), (4, False, False), (4, False, True)]
)
def test_compressed_tensors_integers(
    tmp_path: Path, small_blocks: None, bits: int, groups: int, symmetric: bool, ordered: bool
) -> None:
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32
    from compressed_tensors.quantization import QuantizationArgs, QuantizationStrategy
    from compressed_tensors.quantization.lifecycle.forward import dequantize

    low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    codes = torch.randint(low, high + 1, (20, 48), dtype=torch.int8, generator=generator())
    scale = torch.rand((20, groups), generator=generator(1))
    zero = torch.randint(low, high + 1, (20, groups), dtype=torch.int8, generator=generator(2))
    order = torch.randperm(48, generator=generator(3)) % groups if ordered else None
    strategy = QuantizationStrategy.GROUP if groups > 1 else QuantizationStrategy.CHANNEL
    args = QuantizationArgs(
        num_bits=bits, strategy=strategy, group_size=48 // groups if groups > 1 else None, symmetric=symmetric
    )
    if order is None:
        want = dequantize(codes, scale, None if symmetric else zero, args=args, dtype=torch.float32)
    else:  # the library stopped reading its own column order
        want = (codes.float() - zero[:, order].float()) * scale[:, order]
    tensors = {
        "m.weight_packed": pack_to_int32(codes, bits),
        "m.weight_scale": scale,
        "m.weight_shape": torch.tensor([20, 48]),
    }
    if not symmetric:
        tensors["m.weight_zero_point"] = pack_to_int32(zero, bits, packed_dim=0)
    if order is not None:
        tensors["m.weight_g_idx"] = order.to(torch.int32)
    agrees(write(tmp_path, tensors), want, kind=f"compressed-tensors int{bits}")


def test_compressed_tensors_plain_int8(tmp_path: Path, small_blocks: None) -> None:
    codes = torch.randint(-128, 128, (20, 48), dtype=torch.int8, generator=generator())
    scale, zero = torch.rand((20, 1), generator=generator(1)), torch.randint(-9, 9, (20, 1), dtype=torch.int8)
    tensors = {"m.weight": codes, "m.weight_scale": scale}
    agrees(write(tmp_path / "s", tensors), codes.float() * scale, kind="int8")
    agrees(write(tmp_path / "z", tensors | {"m.weight_zero_point": zero}), (codes.float() - zero.float()) * scale, kind="int8")


def packed_words(codes: torch.Tensor, bits: int, places: list[int] | None = None) -> torch.Tensor:
    """(rows, columns) codes to (rows, columns · bits / 32) words, written plainly; `places`: where in its word each code goes."""
    per = 32 // bits
    words = []
    for row in codes.tolist():
        for first in range(0, len(row), per):
            word = sum(code << (bits * (places[j] if places else j)) for j, code in enumerate(row[first : first + per]))
            words.append(word - (1 << 32) if word >> 31 else word)
    return torch.tensor(words, dtype=torch.int32).reshape(len(codes), -1)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize(("form", "ordered"), [("gptq", False), ("gptq", True), ("gptq_v2", False)])
def test_gptq(tmp_path: Path, small_blocks: None, bits: int, form: str, ordered: bool) -> None:
    inputs, outputs, groups = 64, 48, 4
    codes = torch.randint(0, 1 << bits, (inputs, outputs), generator=generator())
    zero = torch.randint(0, 1 << bits, (groups, outputs), generator=generator(1))
    scale = torch.rand((groups, outputs), generator=generator(2)).half()
    order = torch.randperm(inputs, generator=generator(3)) % groups if ordered else torch.arange(inputs) // (inputs // groups)
    want = ((codes - zero[order]).float() * scale[order].float()).T
    written = (zero - 1) % (1 << bits) if form == "gptq" else zero
    tensors = {
        "m.qweight": packed_words(codes.T, bits).T, "m.qzeros": packed_words(written, bits), "m.scales": scale,
        "m.g_idx": order.to(torch.int32),
    }  # fmt: skip
    config = {"quantization_config": {"quant_method": "gptq", "bits": bits, "checkpoint_format": form}}
    agrees(write(tmp_path, tensors, **config), want, kind=f"GPTQ int{bits}")


def test_awq(tmp_path: Path, small_blocks: None) -> None:
    inputs, outputs, groups = 64, 48, 4
    codes = torch.randint(0, 16, (inputs, outputs), generator=generator())
    zero = torch.randint(0, 16, (groups, outputs), generator=generator(1))
    scale = torch.rand((groups, outputs), generator=generator(2)).half()
    want = ((codes - zero.repeat_interleave(16, 0)).float() * scale.float().repeat_interleave(16, 0)).T
    order = [0, 2, 4, 6, 1, 3, 5, 7]  # AutoAWQ: nibble i holds column order[i]
    places = [order.index(j) for j in range(8)]
    tensors = {"m.qweight": packed_words(codes, 4, places), "m.qzeros": packed_words(zero, 4, places), "m.scales": scale}
    agrees(write(tmp_path, tensors), want, kind="AWQ int4")
