"""FP4 (E2M1) with a scale for each group of a row: MXFP4 and NVFP4. Two codes a byte, low nibble first.

value = E2M1[code] · scale. MXFP4: groups of 32, scale = 2^(byte − 127). NVFP4: groups of 16, scale = the FP8 scale divided by
`weight_global_scale` (compressed-tensors) or multiplied by `weight_scale_2` (modelopt).

gpt-oss stores `NAME_blocks` (experts, out, in/32, 16) and `NAME_scales` (experts, out, in/32) for a parameter that the model
holds as (experts, in, out): the matrix of each expert is turned.

Source: transformers.integrations.mxfp4 (convert_moe_packed_tensors), compressed-tensors (nvfp4-pack-quantized,
mxfp4-pack-quantized), the OCP Microscaling Formats specification 1.0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final

from mcp_server.formats.quantised.part import Found, Packing, Part, Stored

MX_GROUP: Final = 32
NV_GROUP: Final = 16
UNITS_HELD: Final = 4


@dataclass(frozen=True, slots=True)
class Float4(Packing):
    """Codes (out, in/2) bytes; `scale` (out, in/group): F8_E4M3 (NVFP4), or U8 or F8_E8M0 exponents (MXFP4).

    `overall` is a single F32 that divides the scales (`divides`) or multiplies them.
    """

    codes: Part
    scale: Part
    group: int
    overall: Part | None
    divides: bool

    scheme: ClassVar[str] = "FP4"

    @property
    def kind(self) -> str:
        return "MXFP4" if self.overall is None else "NVFP4"

    @property
    def parts(self) -> tuple[Part, ...]:
        return (self.codes, self.scale, *([self.overall] if self.overall else []))

    @property
    def held_bytes(self) -> int:
        return (1 + 2 * 4) * self.scale.elements + 4096


@dataclass(frozen=True, slots=True)
class TurnedFloat4(Packing):
    """MXFP4 of gpt-oss: `shape` is (experts, in, out), the codes lie as (experts, out, in/2). Read one expert at a time."""

    codes: Part
    scale: Part

    scheme: ClassVar[str] = "MXFP4"

    @property
    def parts(self) -> tuple[Part, ...]:
        return (self.codes, self.scale)

    @property
    def held_bytes(self) -> int:
        return UNITS_HELD * 2 * (self.codes.nbytes + 4 * self.scale.nbytes) // max(1, self.shape[0]) + 4096


def find(stored: Stored) -> Found:
    found: Found = {}
    for name, part in stored.parts.items():
        if name.endswith("_blocks") and part.dtype == "U8":
            found[name.removesuffix("_blocks")] = _turned(stored, part)
        elif name.endswith(".weight_packed") and part.dtype == "U8":
            found[name.removesuffix("_packed")] = _packed(stored, part, name.removesuffix("_packed"))
        elif name.endswith(".weight") and part.dtype == "U8" and f"{name}_scale_2" in stored.parts:
            found[name] = _packed(stored, part, name)
    return found


def _turned(stored: Stored, codes: Part) -> tuple[Packing, tuple[str, ...]]:
    name = codes.name.removesuffix("_blocks")
    scale = stored.need(f"{name}_scales", f"{codes.name} holds MXFP4 codes")
    if len(codes.shape) != 4 or codes.shape[-1] != MX_GROUP // 2:
        raise stored.wrong(codes, f"(experts, out, in/{MX_GROUP}, {MX_GROUP // 2}): groups of {MX_GROUP} codes")
    stored.expect(scale, ("U8", "F8_E8M0"), codes.shape[:3], f"one for each group of {codes}")
    experts, out, groups, _ = codes.shape
    return TurnedFloat4((experts, groups * MX_GROUP, out), stored.dtype, codes, scale), (codes.name, scale.name)


def _packed(stored: Stored, codes: Part, name: str) -> tuple[Packing, tuple[str, ...]]:
    why = f"{codes.name} holds 4-bit codes"
    scale = stored.need(f"{name}_scale", why)
    if len(codes.shape) != 2 or codes.elements == 0:
        raise stored.wrong(codes, "(out, in/2): two codes a byte")
    rows, columns = codes.shape[0], codes.shape[1] * 2
    names = [codes.name, scale.name]
    overall, divides, group = None, False, MX_GROUP
    if scale.dtype == "F8_E4M3":
        group = NV_GROUP
        divides = f"{name}_scale_2" not in stored.parts
        overall = stored.need(f"{name}_global_scale" if divides else f"{name}_scale_2", "its scales are FP8")
        if overall.dtype != "F32" or overall.elements != 1:
            raise stored.wrong(overall, "one F32")
        names.append(overall.name)
    if columns % group:
        raise stored.wrong(codes, f"rows of a multiple of {group} codes: {columns} does not divide into groups of {group}")
    stored.expect(scale, ("F8_E4M3", "U8", "F8_E8M0"), (rows, columns // group), f"one for each group of {group} of {codes}")
    return Float4((rows, columns), stored.dtype, codes, scale, group, overall, divides), tuple(names)
