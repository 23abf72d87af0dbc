"""One packer a form of packed weights: what is stored for a matrix, and what it stands for by the library that made it.

GPTQ and AWQ have no library that runs here: their packing is written out plainly, bit by bit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

Tensors = dict[str, torch.Tensor]


@dataclass
class Packed:
    """`value` is float32; `metadata` goes into the file's `__metadata__`."""

    stored: Tensors
    value: torch.Tensor
    metadata: dict[str, str] = field(default_factory=dict)


Packer = Callable[[str, torch.Tensor], Packed]


@dataclass(frozen=True)
class Form:
    kind: str
    """What inspect calls it."""
    pack: Packer
    config: dict[str, Any] = field(default_factory=dict)
    """The quantization_config."""


def numbers_of_4_bits(packed: torch.Tensor, state: Any) -> torch.Tensor:
    """bitsandbytes' own, as if of one row: 0.50.2 begins a new block at every row where there is AVX-512; packing does not."""
    from bitsandbytes.functional import dequantize_4bit

    shape = state.shape
    state.shape = torch.Size((1, shape.numel()))
    value: torch.Tensor = dequantize_4bit(packed, state).reshape(shape)
    state.shape = shape
    return value


def bits4(name: str, weight: torch.Tensor, *, kind: str, block: int, nested: bool, storage: torch.dtype = torch.uint8) -> Packed:
    from bitsandbytes.functional import quantize_4bit

    packed, state = quantize_4bit(weight, blocksize=block, compress_statistics=nested, quant_type=kind)
    value = numbers_of_4_bits(packed, state)
    stored = {name: packed.reshape(-1).view(storage).reshape(-1, 1)}
    return Packed(stored | {f"{name}.{key}": part for key, part in state.as_dict(packed=True).items()}, value)


def bits8(name: str, weight: torch.Tensor) -> Packed:
    from bitsandbytes.functional import int8_vectorwise_dequant

    scale = weight.abs().amax(1)
    codes = (weight / scale[:, None] * 127).round().to(torch.int8)
    return Packed({name: codes, name.replace("weight", "SCB"): scale}, int8_vectorwise_dequant(codes, scale))


def fp8(
    name: str, weight: torch.Tensor, *, grid: tuple[int, ...], suffix: str = "_scale", dtype: torch.dtype = torch.float8_e4m3fn
) -> Packed:
    """Blocks of `grid` (rows, columns), the last ones partial; one number: one scale."""
    if not grid:
        scale = weight.abs().max() / 100
        codes = (weight / scale).to(dtype)
        return Packed({name: codes, name + suffix: scale.reshape(1)}, codes.float() * scale)
    rows, columns = (min(size, whole) for size, whole in zip(grid, weight.shape, strict=True))
    scale = torch.rand((-(-weight.shape[0] // rows), -(-weight.shape[1] // columns))) + 0.01
    spread = scale.repeat_interleave(rows, 0)[: len(weight)].repeat_interleave(columns, 1)[:, : weight.shape[1]]
    codes = (weight / spread).to(dtype)
    return Packed({name: codes, name + suffix: scale}, codes.float() * spread)


def compressed(name: str, weight: torch.Tensor, *, form: str, scale_dtype: torch.dtype | None = None, **arguments: Any) -> Packed:
    """By compressed-tensors' own compressor of that format, unpacked by its own decompressor."""
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from compressed_tensors.quantization.utils import calculate_qparams

    args = QuantizationArgs(**arguments, scale_dtype=scale_dtype)
    group = args.group_size or weight.shape[1]
    values = weight.reshape(len(weight), -1, group)
    overall = {"weight_global_scale": torch.tensor([50.0])} if form.startswith("nvfp4") else {}
    scale, zero = calculate_qparams(values.amin(2), values.amax(2), args, global_scale=next(iter(overall.values()), None))
    state = {"weight": weight, "weight_scale": scale, "weight_zero_point": zero, **overall}
    if args.symmetric:
        del state["weight_zero_point"]
    scheme = QuantizationScheme(targets=["Linear"], weights=args)
    compressor = BaseCompressor.get_value_from_registry(form)
    stored = compressor.compress(state, scheme)
    value = compressor.decompress(dict(stored), scheme)["weight"].float()
    if overall:  # the library rounds scales to bf16 here
        from compressed_tensors.compressors.nvfp4.helpers import unpack_fp4_from_uint8

        codes = unpack_fp4_from_uint8(stored["weight_packed"], *weight.shape, torch.float32).reshape(len(weight), -1, group)
        value = (codes * (stored["weight_scale"].float() / overall["weight_global_scale"])[..., None]).reshape(weight.shape)
    return Packed({name.removesuffix("weight") + key: part for key, part in stored.items()}, value)


def ordered(name: str, weight: torch.Tensor) -> Packed:
    """compressed-tensors with activation ordering, whose groups are named input by input; the library stopped reading them."""
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

    order = torch.randperm(weight.shape[1]) % 2
    scale = torch.stack([weight[:, order == group].abs().amax(1) for group in (0, 1)], 1) / 7
    codes = (weight / scale[:, order]).round().clamp(-8, 7).to(torch.int8)
    stored = {
        "_packed": pack_to_int32(codes, 4),
        "_scale": scale,
        "_shape": torch.tensor(weight.shape),
        "_g_idx": order.to(torch.int32),
    }
    return Packed({name + key: part for key, part in stored.items()}, codes.float() * scale[:, order])


def torchao(name: str, weight: torch.Tensor, *, config: Callable[[], Any]) -> Packed:
    """By torchao's own quantiser and flattening, unpacked by its own dequantize."""
    from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict
    from torchao.quantization import quantize_

    layer = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight.data = weight.clone()
    quantize_(layer, config())
    stored, metadata = flatten_tensor_state_dict({name: layer.weight.data})
    metadata.pop("tensor_names")
    return Packed(stored, layer.weight.dequantize().float(), metadata)


def ao_int8() -> Any:
    from torchao.quantization import Int8WeightOnlyConfig

    return Int8WeightOnlyConfig()


def ao_int4() -> Any:
    from torchao.quantization import IntxWeightOnlyConfig, PerGroup

    return IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(32))


def ao_fp8() -> Any:
    from torchao.quantization import Float8WeightOnlyConfig

    return Float8WeightOnlyConfig()


def in_words(codes: torch.Tensor, bits: int, places: list[int] | None = None) -> torch.Tensor:
    """(rows, columns) codes to (rows, columns · bits / 32) words, end to end; `places`: where in its eight each code goes."""
    words = []
    for row in codes.tolist():
        there = [row[i - i % 8 + places.index(i % 8)] for i in range(len(row))] if places else row
        stream = sum(code << (bits * i) for i, code in enumerate(there))
        for _ in range(len(row) * bits // 32):
            word = stream & 0xFFFFFFFF
            words.append(word - (1 << 32) if word >> 31 else word)
            stream >>= 32
    return torch.tensor(words, dtype=torch.int32).reshape(len(codes), -1)


def columns(name: str, weight: torch.Tensor, *, bits: int, group: int = 32, lacks: int = 0, symmetric: bool = False,
            shuffled: bool = False, awq: bool = False) -> Packed:  # fmt: skip
    """GPTQ's and AWQ's layout: words across the rows of the weight."""
    groups, most = weight.shape[1] // group, (1 << bits) - 1
    order = torch.randperm(weight.shape[1]) % groups if shuffled else torch.arange(weight.shape[1]) // group
    low, high = (
        torch.stack([extreme(weight[:, order == g], 1) for g in range(groups)]) for extreme in (torch.amin, torch.amax)
    )  # (groups, out)
    scale = ((high - low) / most).half()
    zero = torch.full_like(scale, (most + 1) // 2) if symmetric else (-low / scale.float()).round().clamp(lacks, most)
    zero = zero.to(torch.int64)
    codes = (weight.T / scale[order].float() + zero[order]).round().clamp(0, most).to(torch.int64)  # (in, out)
    value = ((codes - zero[order]).float() * scale[order].float()).T
    stem = name.removesuffix("weight")
    if awq:
        places = [0, 4, 1, 5, 2, 6, 3, 7]  # AutoAWQ: nibble i holds column [0, 2, 4, 6, 1, 3, 5, 7][i]
        stored = {"qweight": in_words(codes, 4, places), "qzeros": in_words(zero, 4, places), "scales": scale}
    else:
        stored = {
            "qweight": in_words(codes.T, bits).T, "qzeros": in_words(zero - lacks, bits), "scales": scale,
            "g_idx": order.to(torch.int32),
        }  # fmt: skip
    return Packed({stem + key: part.contiguous() for key, part in stored.items()}, value)


def gemv(name: str, weight: torch.Tensor, *, group: int = 32) -> Packed:
    """AutoAWQ's gemv layout: codes in order along the rows, scales and zero points by row, padded."""
    groups = weight.shape[1] // group
    words = -(-groups // 8)
    words = -(-words // {32: 4, 64: 2}.get(group, 1)) * {32: 4, 64: 2}.get(group, 1)
    parts = weight.reshape(len(weight), groups, group)
    low, high = parts.amin(2), parts.amax(2)
    scale = ((high - low) / 15).half()
    zero = (-low / scale.float()).round().clamp(0, 15).to(torch.int64)
    codes = (parts / scale[..., None].float() + zero[..., None]).round().clamp(0, 15).to(torch.int64)
    value = ((codes - zero[..., None]).float() * scale[..., None].float()).reshape(weight.shape)
    scales, zeros = (
        torch.zeros((len(weight), words * 8), dtype=torch.float16),
        torch.zeros((len(weight), words * 8), dtype=torch.int64),
    )
    scales[:, :groups], zeros[:, :groups] = scale, zero
    stored = {"qweight": in_words(codes.reshape(weight.shape), 4), "qzeros": in_words(zeros, 4), "scales": scales}
    return Packed({name.removesuffix("weight") + key: part.contiguous() for key, part in stored.items()}, value)


def gptq(checkpoint_format: str = "gptq", **settings: Any) -> dict[str, Any]:
    return {"quant_method": "gptq", "checkpoint_format": checkpoint_format} | settings


GROUP: dict[str, Any] = {"num_bits": 4, "group_size": 32, "strategy": "group", "symmetric": True}
ASYMMETRIC: dict[str, Any] = GROUP | {"symmetric": False}
CHANNEL: dict[str, Any] = {"num_bits": 8, "strategy": "channel", "symmetric": True}
FLOAT4: dict[str, Any] = {"num_bits": 4, "type": "float", "symmetric": True}
FORMS: dict[str, Form] = {
    "nf4": Form("bitsandbytes nf4", partial(bits4, kind="nf4", block=64, nested=False)),
    "nf4 nested": Form("bitsandbytes nf4", partial(bits4, kind="nf4", block=64, nested=True)),
    "nf4 of 128": Form("bitsandbytes nf4", partial(bits4, kind="nf4", block=128, nested=True)),
    "nf4 in bf16": Form("bitsandbytes nf4", partial(bits4, kind="nf4", block=64, nested=True, storage=torch.bfloat16)),
    "fp4": Form("bitsandbytes fp4", partial(bits4, kind="fp4", block=64, nested=True)),
    "LLM.int8": Form("bitsandbytes int8", bits8),
    "fp8 one scale": Form("FP8 (e4m3)", partial(fp8, grid=())),
    "fp8 rows": Form("FP8 (e4m3)", partial(fp8, grid=(1, 1 << 20))),
    "fp8 blocks": Form("FP8 (e4m3)", partial(fp8, grid=(32, 32), suffix="_scale_inv")),
    "fp8 edges": Form(
        "FP8 (e4m3)", partial(fp8, grid=(48, 40), suffix="_scale_inv"), {"quant_method": "fp8", "weight_block_size": [48, 40]}
    ),
    "fp8 e5m2": Form("FP8 (e5m2)", partial(fp8, grid=(1, 1 << 20), dtype=torch.float8_e5m2)),
    "mxfp8": Form("FP8 (e4m3)", partial(compressed, form="mxfp8-quantized", num_bits=8, type="float", group_size=32,
                                        strategy="group", symmetric=True, scale_dtype=torch.uint8)),
    "mxfp4": Form("MXFP4", partial(compressed, form="mxfp4-pack-quantized", group_size=32, strategy="group",
                                   scale_dtype=torch.uint8, **FLOAT4)),
    "nvfp4": Form("NVFP4", partial(compressed, form="nvfp4-pack-quantized", group_size=16, strategy="tensor_group",
                                   scale_dtype=torch.float8_e4m3fn, **FLOAT4)),
    "int4 groups": Form("compressed-tensors int4", partial(compressed, form="pack-quantized", **GROUP)),
    "int4 asymmetric": Form("compressed-tensors int4", partial(compressed, form="pack-quantized", **ASYMMETRIC)),
    "int3 groups": Form("compressed-tensors int3", partial(compressed, form="pack-quantized", **GROUP | {"num_bits": 3})),
    "int4 ordered": Form("compressed-tensors int4", ordered),
    "int8 channels": Form("compressed-tensors int8", partial(compressed, form="pack-quantized", **CHANNEL)),
    "int8 plain": Form("int8", partial(compressed, form="int-quantized", **CHANNEL)),
    "int8 plain asymmetric": Form("int8", partial(compressed, form="int-quantized", **CHANNEL | {"symmetric": False})),
    "gptq": Form("GPTQ int4", partial(columns, bits=4, lacks=1, shuffled=True), gptq()),
    "gptq 2 bits": Form("GPTQ int2", partial(columns, bits=2, lacks=1), gptq()),
    "gptq 3 bits": Form("GPTQ int3", partial(columns, bits=3, lacks=1), gptq()),
    "gptq 8 bits": Form("GPTQ int8", partial(columns, bits=8, lacks=1), gptq()),
    "gptq_v2": Form("GPTQ int4", partial(columns, bits=4), gptq("gptq_v2")),
    "gptq_v2 as `format`": Form("GPTQ int4", partial(columns, bits=4), {"quant_method": "gptq", "format": "gptq_v2"}),
    "gptq_v2 3 bits": Form("GPTQ int3", partial(columns, bits=3, shuffled=True), gptq("gptq_v2")),
    "gptq one group": Form("GPTQ int4", partial(columns, bits=4, group=64, lacks=1), gptq()),
    "gptq without a config": Form("GPTQ int4", partial(columns, bits=4, lacks=1, symmetric=True)),
    "gptq_v2 without a config": Form("GPTQ int4", partial(columns, bits=4, symmetric=True)),
    "auto-round": Form("GPTQ int4", partial(columns, bits=4), {"quant_method": "auto-round", "packing_format": "auto_round"}),
    "auto-round as gptq": Form(
        "GPTQ int4", partial(columns, bits=4, lacks=1), {"quant_method": "auto-round", "packing_format": "auto_round:auto_gptq"}
    ),
    "awq": Form("AWQ int4", partial(columns, bits=4, awq=True), {"quant_method": "awq", "version": "gemm"}),
    "awq gemv": Form("AWQ int4", gemv, {"quant_method": "awq", "version": "gemv", "group_size": 32}),
    "awq gemv, groups of 64": Form(
        "AWQ int4", partial(gemv, group=64), {"quant_method": "awq", "version": "gemv", "q_group_size": 64}
    ),
    "awq gemv, no method": Form("AWQ int4", gemv, {"w_bit": 4, "q_group_size": 32, "version": "gemv"}),
    "awq without a config": Form("AWQ int4", partial(columns, bits=4, awq=True)),
    "torchao int8": Form("int8", partial(torchao, config=ao_int8), {"quant_method": "torchao"}),
    "torchao int4": Form("int8", partial(torchao, config=ao_int4), {"quant_method": "torchao"}),
    "torchao fp8": Form("FP8 (e4m3)", partial(torchao, config=ao_fp8), {"quant_method": "torchao"}),
}  # fmt: skip
