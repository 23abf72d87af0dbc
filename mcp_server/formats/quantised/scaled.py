"""FP8 with scales, and int8 with scales: one code a byte, value = code · scale (int8: (code − zero point) · scale).

The scale is one for the tensor, for each row, or for each block of rows × columns: `weight_scale_inv` (DeepSeek, Qwen; despite
its name it multiplies) and `weight_scale` (compressed-tensors, fbgemm, modelopt). A scale in F8_E8M0, or in U8 beside FP8 codes
(MXFP8), is 2^(byte − 127).

Source: transformers.integrations.finegrained_fp8 (Fp8Dequantize), compressed-tensors (naive-quantized, float-quantized,
int-quantized, mxfp8-quantized), the OCP 8-bit floating point specification.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Final

from mcp_server.errors import Malformed
from mcp_server.formats.quantised.part import AGAIN, SCALES, Found, Packing, Part, Stored, ceil

FLOAT8: Final = ("F8_E4M3", "F8_E5M2")
_SUFFIXES: Final = ("_scale_inv", "_scale")
_USUAL_BLOCK: Final = 128
CACHE_SCALES: Final = ("k_scale", "v_scale", "q_scale", "kv_scale", "prob_scale", "prob_output_scale")
"""Scales of attention and its cache, which a server keeps in 8 bits: stored at the attention block or at its projections, beside
weights that may be plain."""
ACTIVATION_SCALES: Final = (
    "input_scale", "output_scale", "input_scale_ub", "activation_scale", "input_zero_point", "input_global_scale", *CACHE_SCALES,
)  # fmt: skip
"""Scales of what flows through a layer; they belong to the quantised layer and mean nothing for the unpacked weight."""


@dataclass(frozen=True, slots=True)
class Scaled(Packing):
    """Codes (…, out, in); `scale` has one value for each `block` = (rows, columns) of every matrix, partial blocks counted."""

    codes: Part
    scale: Part
    zero: Part | None
    block: tuple[int, int]

    scheme: ClassVar[str] = "scaled"

    @property
    def kind(self) -> str:
        names = {"F8_E4M3": "FP8 (e4m3)", "F8_E5M2": "FP8 (e5m2)", "I8": "int8"}
        return names[self.codes.dtype]

    @property
    def parts(self) -> tuple[Part, ...]:
        return (self.codes, self.scale, *([self.zero] if self.zero else []))

    @property
    def held_bytes(self) -> int:
        return 3 * 4 * self.scale.elements + 2048


@dataclass(frozen=True, slots=True)
class Float8(Packing):
    """FP8 numbers as they are, without a scale: of models that no quantisation speaks of, where transformers loads them so."""

    codes: Part

    scheme: ClassVar[str] = "plain FP8"

    @property
    def parts(self) -> tuple[Part, ...]:
        return (self.codes,)

    @property
    def held_bytes(self) -> int:
        return 1024


def find(stored: Stored) -> Found:
    found: Found = {}
    plain = not stored.settings and not any(name.endswith(_SUFFIXES) for name in stored.parts)
    for name, codes in stored.parts.items():
        beside = [stored.parts[name + suffix] for suffix in _SUFFIXES if name + suffix in stored.parts]
        scale = next(iter(beside), None)
        if codes.dtype not in FLOAT8 and not (codes.dtype == "I8" and scale is not None and not _is_packed_fp4(codes, scale)):
            continue
        if name.endswith((*_SUFFIXES, "_qdata")):
            continue  # an FP8 scale of 4-bit codes, or torchao's
        if scale is None and plain:
            found[name] = Float8(codes.shape, stored.dtype, codes), (name,)
            continue
        if scale is None:
            raise Malformed(
                f"{stored.where}: {codes} has no {name}_scale or {name}_scale_inv beside it: what its codes mean is not known",
                AGAIN,
            )
        if len(beside) > 1:
            raise Malformed(
                f"{stored.where}: {codes} has two scales, {beside[0]} and {beside[1]}: which counts is not known", AGAIN
            )
        zero = stored.parts.get(f"{name}_zero_point") if codes.dtype == "I8" else None
        packing = scaled(stored, codes, scale, zero)
        found[name] = (packing, tuple(part.name for part in packing.parts))
    return found


def refuse_beside_plain(stored: Stored) -> None:
    """Scales of FP8 codes beside weights that are no codes: whether these are multiplied with them already is not known.

    Folders that were converted by hand hold them, with the codes cast to 16 bits, or unpacked ones whose scales were left behind.
    """
    for name, scale in stored.parts.items():
        weight = stored.parts.get(name.removesuffix("_scale_inv")) if name.endswith("_scale_inv") else None
        if weight is not None and weight.dtype in SCALES:
            raise Malformed(
                f"{stored.where}: {scale} holds scales of FP8 codes, and {weight} beside it is not FP8: whether it was "
                "multiplied with them is not known",
                "remove the scales if the weights are unpacked, or download the checkpoint again",
            )


def scaled(stored: Stored, codes: Part, scale: Part, zero: Part | None) -> Scaled:
    """The packing of these parts. Raises `Malformed` when they do not fit together."""
    exponents = ("F8_E8M0", "U8") if codes.dtype in FLOAT8 else ("F8_E8M0",)
    if scale.dtype not in (*SCALES, *exponents):
        raise stored.wrong(scale, f"{', '.join(SCALES)} or {' or '.join(exponents)}")
    if zero is not None:
        stored.expect(zero, ("I8",), scale.shape, "one for each scale")
    block = _block(stored, codes, scale)
    if codes.dtype == "I8" and codes.shape[-1] % block[1]:
        raise stored.wrong(scale, f"one for each row, or for equal groups of each row, of {codes}")
    return Scaled(codes.shape, stored.dtype, codes, scale, zero, block)


def _is_packed_fp4(codes: Part, scale: Part) -> bool:
    """DeepSeek stores 4-bit floats in int8: two codes a byte, E8M0 scales."""
    return scale.dtype in ("F8_E8M0", "U8") and codes.dtype == "I8"


def _block(stored: Stored, codes: Part, scale: Part) -> tuple[int, int]:
    """Rows and columns that share a scale, from the two shapes and the config. Raises `Malformed` when none explains them."""
    if len(codes.shape) < 2:
        raise stored.wrong(codes, "a matrix, as it has scales")
    *lead, rows, columns = codes.shape
    if scale.elements == 1:
        if math.prod(lead) != 1:
            raise stored.wrong(scale, f"one for each matrix of {codes}")
        return rows, columns
    shape = scale.shape
    if lead and math.prod(shape) == math.prod(lead):  # one for each expert
        return rows, columns
    if shape == (*lead, rows):
        return 1, columns
    if len(shape) != len(codes.shape) or shape[:-2] != tuple(lead):
        raise stored.wrong(scale, f"one for the tensor, for each row, or for each block of {codes}")
    choices = _declared(stored) or [(_USUAL_BLOCK, _USUAL_BLOCK), (1, columns)]
    for high, wide in choices:
        if shape[-2:] == (ceil(rows, high), ceil(columns, wide)):
            return high, wide
    if isinstance(size := stored.settings.get("weight_block_size"), list):
        raise stored.wrong(scale, f"one for each block of {size}, as the config's weight_block_size says, of {codes}")
    if rows % shape[-2] == 0 and columns % shape[-1] == 0:
        return rows // shape[-2], columns // shape[-1]
    raise stored.wrong(scale, f"as many as there are blocks in {codes}; {list(shape[-2:])} does not divide it")


def _declared(stored: Stored) -> list[tuple[int, int]]:
    sizes = [stored.settings.get("weight_block_size"), *(weights.get("block_structure") for weights in stored.schemes())]
    return [
        (size[0], size[1])
        for size in sizes
        if isinstance(size, list) and len(size) == 2 and all(type(v) is int and v > 0 for v in size)
    ]
