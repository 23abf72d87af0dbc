"""bitsandbytes: NF4 and FP4 (double-quantised too), and LLM.int8().

4 bits: two codes a byte, high nibble first, over the flattened weight; value = quant_map[code] · absmax[i // blocksize]. With
double quantisation absmax itself is stored as bytes:
absmax = nested_quant_map[byte] · nested_absmax[j // nested_blocksize] + nested_offset.
8 bits: value = code · SCB[row] · (1/127).

Source: bitsandbytes.functional (QuantState.from_dict, dequantize_4bit, int8_vectorwise_dequant), version 0.50.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from typing import Any, ClassVar, Final, TypeGuard

from mcp_server.errors import Malformed
from mcp_server.formats.dtypes import COMPUTE_DTYPES
from mcp_server.formats.quantised.part import AGAIN, SCALES, Found, Packing, Part, Stored, ceil, read_bytes, read_each

_STATE: Final = re.compile(r"(?P<weight>.+)\.quant_state\.bitsandbytes__(?P<kind>nf4|fp4)$")
_MOST_STATE_BYTES: Final = 65_536
_DIMENSIONS: Final = (1, 2, 3)


@dataclass(frozen=True, slots=True)
class Nested:
    """How absmax is packed in its turn."""

    table: Part
    absmax: Part
    block: int
    offset: float


@dataclass(frozen=True, slots=True)
class Codebook(Packing):
    """4-bit codes into `table`, scaled for each `block` elements of the flattened weight."""

    quant_type: str
    codes: Part
    table: Part
    absmax: Part
    block: int
    nested: Nested | None

    scheme: ClassVar[str] = "bitsandbytes"

    @property
    def kind(self) -> str:
        return f"bitsandbytes {self.quant_type}"

    @property
    def parts(self) -> tuple[Part, ...]:
        nested = (self.nested.table, self.nested.absmax) if self.nested else ()
        return (self.codes, self.table, self.absmax, *nested)

    @property
    def held_bytes(self) -> int:
        return 3 * 4 * self.absmax.elements + 4096


@dataclass(frozen=True, slots=True)
class RowScaledInt8(Packing):
    """int8 codes (out, in), scaled by SCB[out] / 127."""

    codes: Part
    scale: Part

    scheme: ClassVar[str] = "bitsandbytes int8"

    @property
    def parts(self) -> tuple[Part, ...]:
        return (self.codes, self.scale)

    @property
    def held_bytes(self) -> int:
        return 2 * self.scale.nbytes


def find(stored: Stored) -> Found:
    found: Found = {}
    states = _states(stored)
    for name, part in stored.parts.items():
        if match := _STATE.match(name):
            weight = match["weight"]
            found[weight] = _codebook(stored, weight, match["kind"], part, states[name])
        elif name.endswith(".absmax") and (weight := name.removesuffix(".absmax")) in stored.parts:
            kinds = [f"{weight}.quant_state.bitsandbytes__{kind}" for kind in ("nf4", "fp4")]
            if not any(kind in stored.parts for kind in kinds):
                raise Malformed(
                    f"{stored.where}: {weight} is packed by bitsandbytes (it has an absmax), but {kinds[0]}, which says "
                    "its shape and block size, is not there",
                    AGAIN,
                )
        elif name.endswith("SCB"):
            weight = name.removesuffix("SCB") + "weight"
            found[weight] = _int8(stored, weight, part)
    return found


def _codebook(stored: Stored, weight: str, kind: str, state_part: Part, state: dict[str, Any]) -> tuple[Packing, tuple[str, ...]]:
    shape, block = state.get("shape"), state.get("blocksize")
    if not _naturals(shape) or len(shape) not in _DIMENSIONS or not _natural(block) or state.get("quant_type") != kind:
        raise Malformed(f"{stored.where}: {state_part.name} says {str(state)[:200]}, which is no shape and block size", AGAIN)
    why = f"{weight} is packed as {kind}"
    count = math.prod(shape)
    codes = stored.need(weight, why)
    if codes.nbytes < ceil(count, 2) or codes.nbytes - ceil(count, 2) > 4 or codes.elements == 0:
        raise stored.wrong(codes, f"{ceil(count, 2)} bytes: {count} values in {shape}, two a byte")
    table = stored.expect(stored.need(f"{weight}.quant_map", why), ("F32",), (16,), "the values of the 16 codes")
    absmax = stored.need(f"{weight}.absmax", why)
    blocks = ceil(count, block)
    names = [weight, table.name, absmax.name, state_part.name]
    nested = None
    if "nested_offset" in state or f"{weight}.nested_absmax" in stored.parts:
        stored.expect(absmax, ("U8",), (blocks,), f"one for each {block} of {count} values")
        nested = _nested(stored, weight, state, blocks)
        names += [nested.table.name, nested.absmax.name]
    else:
        stored.expect(absmax, SCALES, (blocks,), f"one for each {block} of {count} values")
    dtype = COMPUTE_DTYPES.get(str(state.get("dtype")), stored.dtype)
    return Codebook(tuple(shape), dtype, kind, codes, table, absmax, block, nested), tuple(names)


def _nested(stored: Stored, weight: str, state: dict[str, Any], blocks: int) -> Nested:
    why = f"the absmax of {weight} is packed too"
    block, offset = state.get("nested_blocksize"), state.get("nested_offset")
    if not _natural(block) or isinstance(offset, bool) or not isinstance(offset, int | float) or not math.isfinite(offset):
        raise Malformed(f"{stored.where}: {why}, but its quant_state gives block size {block!r} and offset {offset!r}", AGAIN)
    table = stored.expect(stored.need(f"{weight}.nested_quant_map", why), ("F32",), (256,), "the values of its 256 codes")
    absmax = stored.expect(
        stored.need(f"{weight}.nested_absmax", why), ("F32",), (ceil(blocks, block),), f"one for each {block} of {blocks} values"
    )
    return Nested(table, absmax, block, float(offset))


def _int8(stored: Stored, weight: str, scale: Part) -> tuple[Packing, tuple[str, ...]]:
    codes = stored.need(weight, f"{scale.name} holds the scales of its rows")
    if codes.dtype != "I8" or len(codes.shape) != 2:
        raise stored.wrong(codes, f"an I8 matrix: {scale.name} holds the scales of its rows")
    stored.expect(scale, SCALES, codes.shape[:1], f"one for each row of {codes}")
    names = [weight, scale.name]
    if (layout := weight.removesuffix("weight") + "weight_format") in stored.parts:
        if any(read_bytes(stored.parts[layout], 8)):
            raise Malformed(f"{stored.where}: {weight} is stored in a GPU's own order of bytes, which is not read here", AGAIN)
        names.append(layout)
    return RowScaledInt8(codes.shape, stored.dtype, codes, scale), tuple(names)


def _states(stored: Stored) -> dict[str, dict[str, Any]]:
    """What every quant_state says, by its name.

    On a hub there are hundreds, far apart: one is read for all weights whose names differ by numbers alone and whose codes
    and scales have the same sizes. They have one shape; only the offset of their scales, which no header needs, is their own.
    """

    def kind_of(part: Part) -> object:
        weight = part.name.partition(".quant_state.")[0]
        sizes = [stored.parts[name].nbytes for name in (weight, f"{weight}.absmax") if name in stored.parts]
        return re.sub(r"\d+", "#", part.name), *sizes

    parts = {name: part for name, part in stored.parts.items() if _STATE.match(name)}
    read = read_each(parts, _MOST_STATE_BYTES, kind_of)
    return {name: _state(stored, parts[name], data) for name, data in read.items()}


def _state(stored: Stored, part: Part, data: bytes) -> dict[str, Any]:
    try:
        state = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise Malformed(f"{stored.where}: {part.name} is not JSON: {str(error)[:120]}", AGAIN) from error
    if not isinstance(state, dict):
        raise Malformed(f"{stored.where}: {part.name} holds {type(state).__name__}, not a table", AGAIN)
    return state


def _natural(value: Any) -> TypeGuard[int]:
    return type(value) is int and 0 < value < 1 << 40


def _naturals(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and bool(value) and all(map(_natural, value))
