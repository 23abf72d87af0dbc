"""Integer codes packed into 32-bit words, with a scale and a zero point for each group of inputs: four layouts of one idea.

value = (code − zero) · scale. The weight is (out, in); codes follow one another in the words' bits, lowest first, and where bits
does not divide 32 some begin in one word and end in the next.

  compressed-tensors  weight_packed (out, in·bits/32), weight_scale (out, groups), weight_zero_point (out·bits/32, groups) packed
                      down the rows, weight_g_idx (in), weight_shape = (out, in); codes and zero points are stored plus 2^(bits−1)
  GPTQ                qweight (in·bits/32, out), scales (groups, out), qzeros (groups, out·bits/32), g_idx (in); the stored zero
                      is one too small, except with checkpoint_format gptq_v2
  AWQ                 qweight (in, out·bits/32), scales (groups, out), qzeros (groups, out·bits/32); within a word the codes of
                      columns 0 … 7 lie at places 0, 4, 1, 5, 2, 6, 3, 7
  AWQ's gemv          qweight (out, in·bits/32), scales (out, padded groups), qzeros (out, padded groups·bits/32), codes in order;
                      padded to a multiple of 8 groups, of 16 for groups of 64, of 32 for groups of 32

Shapes do not tell GPTQ's two conventions of zero points apart: the config does, else zero points that are all in the middle.

Source: compressed-tensors (pack-quantized), AutoGPTQ and GPTQModel (dequantize_weight), AutoAWQ (WQLinear_GEMM, packing order;
WQLinear_GEMV), auto-round (packing_format).
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from typing import ClassVar, Final

from mcp_server.errors import Malformed, Unsupported
from mcp_server.formats.quantised.part import AGAIN, SCALES, Found, Packing, Part, Stored, ceil, read_bytes

WORD: Final = 32
BITS: Final = (2, 3, 4, 5, 6, 7, 8)
_GEMV_BITS: Final = 4
_GEMV_GROUP: Final = 128
_GEMV_WIDER: Final = {64: 2, 32: 4}
"""AWQ's gemv: the size of a group → of how many words the zero points of a row are a multiple; 1 for larger groups."""
_MOST_ZERO_BYTES: Final = 64_000_000
_METHODS: Final = ("", "gptq", "awq", "auto-round", "intel/auto-round")
"""What `quant_method` may say of packed columns; without a config it says nothing."""
_TO_GPTQ: Final = "convert it to GPTQ's or AWQ's own layout with GPTQModel, or merge the unquantised model"


@dataclass(frozen=True, slots=True)
class PackedRows(Packing):
    """compressed-tensors: words along the rows."""

    bits: int
    codes: Part
    scale: Part
    zero: Part | None
    order: Part | None

    scheme: ClassVar[str] = "compressed-tensors"

    @property
    def kind(self) -> str:
        return f"compressed-tensors int{self.bits}"

    @property
    def parts(self) -> tuple[Part, ...]:
        return (self.codes, self.scale, *(part for part in (self.zero, self.order) if part))

    @property
    def held_bytes(self) -> int:
        return 4 * 4 * self.scale.elements + 12 * self.columns


@dataclass(frozen=True, slots=True)
class PackedGemv(Packing):
    """AWQ's gemv layout: words along the rows, and along each row's groups. `groups` of the padded ones are meant."""

    bits: int
    codes: Part
    scale: Part
    zero: Part
    groups: int

    scheme: ClassVar[str] = "AWQ"

    @property
    def kind(self) -> str:
        return f"AWQ int{self.bits}"

    @property
    def parts(self) -> tuple[Part, ...]:
        return (self.codes, self.scale, self.zero)

    @property
    def held_bytes(self) -> int:
        return 6 * 4 * self.scale.elements


@dataclass(frozen=True, slots=True)
class PackedColumns(Packing):
    """GPTQ and AWQ: words across the rows of the weight, so all of a weight's codes are held while it is read.

    `added` is what the stored zero point lacks; `interleaved` says AWQ: words along the outputs, in its order.
    """

    bits: int
    codes: Part
    scale: Part
    zero: Part
    order: Part | None
    added: int
    interleaved: bool

    scheme: ClassVar[str] = "GPTQ"

    @property
    def kind(self) -> str:
        return f"{'AWQ' if self.interleaved else 'GPTQ'} int{self.bits}"

    @property
    def parts(self) -> tuple[Part, ...]:
        return (self.codes, self.scale, self.zero, *([self.order] if self.order else []))

    @property
    def held_bytes(self) -> int:
        return 2 * self.codes.nbytes + 6 * 4 * self.scale.elements + 12 * self.columns


def find(stored: Stored) -> Found:
    found: Found = {}
    for name, part in stored.parts.items():
        if name.endswith(".weight_packed") and part.dtype == "I32":
            found[name.removesuffix("_packed")] = _rows(stored, part)
        elif name.endswith(".qweight"):
            found[name.removesuffix("qweight") + "weight"] = _columns(stored, part)
    return found


def _rows(stored: Stored, codes: Part) -> tuple[Packing, tuple[str, ...]]:
    name, why = codes.name.removesuffix("_packed"), f"{codes.name} holds packed integers"
    scale = stored.need(f"{name}_scale", why)
    declared = stored.need(f"{name}_shape", why)
    if declared.dtype not in ("I64", "I32") or declared.shape != (2,) or len(codes.shape) != 2:
        raise stored.wrong(declared, f"I64 [2], the weight's rows and columns, and {codes} a matrix")
    width = declared.nbytes // 2
    raw = read_bytes(declared, 16)
    rows, columns = (int.from_bytes(raw[i * width : (i + 1) * width], "little", signed=True) for i in (0, 1))
    bits = _bits_of_rows(stored, codes, rows, columns)
    if scale.dtype not in SCALES or len(scale.shape) != 2 or scale.shape[0] not in (1, rows) or not scale.shape[1]:
        raise stored.wrong(scale, f"({rows}, groups), floating point")
    zero = stored.parts.get(f"{name}_zero_point")
    if zero is not None:
        packed = (ceil(rows * bits, WORD), scale.shape[1])
        if not ((zero.dtype == "I32" and zero.shape == packed) or (zero.dtype == "I8" and zero.shape == scale.shape)):
            raise stored.wrong(zero, f"I32 {list(packed)}, packed down the rows, or I8 {list(scale.shape)}")
    order = stored.parts.get(f"{name}_g_idx")
    if order is not None:
        order = _order(stored, order, columns, scale.shape[1], may_be_unset=True)
    if order is None and columns % scale.shape[1]:
        raise stored.wrong(scale, f"({rows}, groups), and {scale.shape[1]} groups do not divide {columns} columns")
    packing = PackedRows((rows, columns), stored.dtype, bits, codes, scale, zero, order)
    named = (codes, scale, declared, stored.parts.get(f"{name}_zero_point"), stored.parts.get(f"{name}_g_idx"))
    return packing, tuple(part.name for part in named if part)


def _order(stored: Stored, order: Part, columns: int, groups: int, *, may_be_unset: bool = False) -> Part | None:
    """The group of each input. It may be unset: compressed-tensors fills it with −1 where the groups are in order."""
    stored.expect(order, ("I32", "I64"), (columns,), "the group of each input")
    numbers = array("i" if order.dtype == "I32" else "q", read_bytes(order, 8 * columns))
    low, high = min(numbers), max(numbers)
    if may_be_unset and (low, high) == (-1, -1):
        return None
    if low < 0 or high >= groups:
        raise Malformed(f"{stored.where}: {order} names groups {low} to {high}, and there are scales for {groups}", AGAIN)
    return order


def _columns(stored: Stored, codes: Part) -> tuple[Packing, tuple[str, ...]]:
    stem, why = codes.name.removesuffix("qweight"), f"{codes.name} holds packed integers"
    scale, zero = stored.need(f"{stem}scales", why), stored.need(f"{stem}qzeros", why)
    order = stored.parts.get(f"{stem}g_idx")
    if codes.dtype == "I32" and len(codes.shape) == 2 and _is_gemv(stored, codes, scale, zero):
        rows = _gemv(stored, codes, scale, zero)
        return rows, tuple(part.name for part in rows.parts)
    if codes.dtype != "I32" or len(codes.shape) != 2:
        raise Unsupported(
            f"{stored.where}: {codes} is neither GPTQ's nor AWQ's packing, which is I32 in two dimensions",
            "convert it to one of them with GPTQModel, or merge the unquantised model",
        )
    if scale.dtype not in SCALES or len(scale.shape) != 2 or not scale.elements:
        raise stored.wrong(scale, "(groups, out), floating point")
    groups, out = scale.shape
    if zero.dtype != "I32" or len(zero.shape) != 2 or zero.shape[0] != groups or (zero.shape[1] * WORD) % out:
        raise stored.wrong(zero, f"I32 ({groups}, {out}·bits/32), one zero point for each scale of {scale}")
    bits = zero.shape[1] * WORD // out
    if bits not in BITS:
        raise stored.wrong(zero, f"I32 ({groups}, {out}·bits/32) for 2 to 8 bits")
    method, version = _method(stored, codes)
    if method == "awq" and version != "gemm":
        raise Unsupported(f"{stored.where}: {codes.name} is packed by AWQ as {version!r}; gemm and gemv are read", _TO_GPTQ)
    if codes.shape[1] == out and method != "awq" and codes.shape[0] * WORD % bits == 0:
        interleaved, columns = False, codes.shape[0] * WORD // bits
    elif codes.shape[1] * WORD == out * bits and bits == 4 and method != "gptq":
        interleaved, columns = True, codes.shape[0]
    else:
        raise stored.wrong(codes, f"(in·{bits}/32, {out}) as GPTQ has it, or (in, {out}·{bits}/32) as AWQ does")
    if order is not None:
        order = _order(stored, order, columns, groups)
    if order is None and columns % groups:
        raise stored.wrong(scale, f"{columns} inputs in equal groups; {groups} does not divide it")
    if interleaved and order is not None:
        raise stored.wrong(order, "absent: AWQ's groups are in order")
    added = 0 if interleaved else _lacks(stored, zero, bits, version)
    packing = PackedColumns((out, columns), stored.dtype, bits, codes, scale, zero, order, added, interleaved)
    named = (codes, scale, zero, stored.parts.get(f"{stem}g_idx"))
    return packing, tuple(part.name for part in named if part)


def _is_gemv(stored: Stored, codes: Part, scale: Part, zero: Part) -> bool:
    """By the config, or, where it names no method, by scales that have a row for each output as the codes do.

    Those of GPTQ and AWQ's gemm have a row for each group; as many groups as rows would leave groups of less than 8 inputs.
    """
    method, version = _method(stored, codes)
    if method:
        return method == "awq" and version == "gemv"
    return (
        len(scale.shape) == len(zero.shape) == 2
        and codes.shape[0] == scale.shape[0] == zero.shape[0]
        and zero.shape[1] * 8 == scale.shape[1]
    )


def _gemv(stored: Stored, codes: Part, scale: Part, zero: Part) -> PackedGemv:
    rows, columns = codes.shape[0], codes.shape[1] * (WORD // _GEMV_BITS)
    settings = stored.settings
    said = next((settings[key] for key in ("group_size", "q_group_size") if type(settings.get(key)) is int), None)
    if said is None:
        raise Unsupported(
            f"{stored.where}: {codes} is AWQ's gemv layout, and no config says how many inputs share a scale", _TO_GPTQ
        )
    group = columns if said == -1 else said
    if group <= 0 or columns % group or (group < _GEMV_GROUP and group not in _GEMV_WIDER):
        raise stored.wrong(codes, f"rows of whole groups of {group} inputs, as the config says")
    groups = columns // group
    several = _GEMV_WIDER.get(group, 1)
    words = ceil(ceil(groups, WORD // _GEMV_BITS), several) * several
    if scale.dtype not in SCALES or scale.shape != (rows, words * (WORD // _GEMV_BITS)):
        raise stored.wrong(scale, f"({rows}, {words * (WORD // _GEMV_BITS)}), floating point: {groups} groups, padded")
    stored.expect(zero, ("I32",), (rows, words), f"the zero points of {groups} groups, padded")
    return PackedGemv((rows, columns), stored.dtype, _GEMV_BITS, codes, scale, zero, groups)


def _bits_of_rows(stored: Stored, codes: Part, rows: int, columns: int) -> int:
    """How many bits a code of `weight_packed` has, by its shape; where several fit, by the config."""
    fits = [bits for bits in BITS if columns > 0 and codes.shape == (rows, ceil(columns * bits, WORD))]
    said = {weights.get("num_bits") for weights in stored.schemes()}
    if len(fits) > 1:
        fits = [bits for bits in fits if bits in said]
    if len(fits) != 1:
        raise stored.wrong(codes, f"[{rows}, columns·bits/32] for the {rows} × {columns} weight that its weight_shape gives")
    return fits[0]


def _method(stored: Stored, codes: Part) -> tuple[str, str]:
    """(`gptq`, `awq` or nothing, the layout's version). Raises `Unsupported` for a method whose layout is another."""
    settings = stored.settings
    method = str(settings.get("quant_method", "")).lower()
    if not method:  # a file beside the config names none
        method = "awq" if "w_bit" in settings else "gptq" if {"desc_act", "checkpoint_format"} & set(settings) else ""
    if method not in _METHODS:
        raise Unsupported(f"{stored.where}: {codes.name} is packed by {method}, whose layout is not known here", _TO_GPTQ)
    if "auto-round" in method:
        return _auto_round(str(settings.get("packing_format", "")))
    keys = ("version", "format") if method == "awq" else ("checkpoint_format", "format")
    named = next((settings[key] for key in keys if settings.get(key)), "gemm" if method == "awq" else "gptq")
    return method, str(named).lower() if method else ""


def _auto_round(packing: str) -> tuple[str, str]:
    if "awq" in packing:
        return "awq", "gemm"
    if "auto_gptq" in packing:
        return "gptq", "gptq"
    return "gptq", "gptq_v2" if packing in ("auto_round", "auto_round:gptqmodel") else ""


def _lacks(stored: Stored, zero: Part, bits: int, version: str) -> int:
    """How much smaller than the zero points GPTQ stored them: 1, or 0 in its second version."""
    if version in ("gptq", "gptq_v2"):
        return int(version == "gptq")
    if version:
        raise Unsupported(f"{stored.where}: checkpoint_format {version!r} is neither gptq nor gptq_v2", _TO_GPTQ)
    stored_zeros = read_bytes(zero, _MOST_ZERO_BYTES)
    for lacks in (1, 0):
        if stored_zeros == _all((1 << (bits - 1)) - lacks, bits, zero.nbytes):
            return lacks
    raise Malformed(
        f"{stored.where}: {zero.name} may hold GPTQ's zero points as they are, or less one, and no config says which",
        "put the config.json or quantize_config.json of the quantised model into its folder",
    )


def _all(code: int, bits: int, nbytes: int) -> bytes:
    """`nbytes` bytes of one code, packed."""
    word = sum(code << (bits * place) for place in range(WORD)).to_bytes(4 * bits, "little")
    return (word * ceil(nbytes, len(word)))[:nbytes]
