"""ggml's types, as GGUF stores them: blocks of 32, 64, 128 or 256 values of a row, each block with its own scales.

What a converter did to a tensor is undone as it is read: `heads` says that the rows of each attention head were interleaved for
ggml's rotary embedding (stored row 2·i + j of a head is row j·half + i of the weight), `added` what was added to every value
(Gemma's norms are stored plus one).

Source: ggml (ggml-quants.c) and its Python twin gguf.quants; llama.cpp's conversion of each architecture.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final

from mcp_server.formats.quantised.part import Packing, Part

TYPES: Final = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22), 7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34), 10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110), 12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210), 16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74), 18: ("IQ3_XXS", 256, 98), 19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110), 22: ("IQ2_S", 256, 82), 23: ("IQ4_XS", 256, 136), 28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56), 30: ("BF16", 1, 2), 34: ("TQ1_0", 256, 54), 35: ("TQ2_0", 256, 66), 39: ("MXFP4", 32, 17),
    40: ("NVFP4", 64, 36),
}  # fmt: skip
"""Number in the file → (name, values of a block, its bytes). Types that no weight is stored in (Q8_1, integers) are left out."""
UNREAD: Final = {
    4: "Q4_2", 5: "Q4_3", 9: "Q8_1", 15: "Q8_K", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 31: "Q4_0_4_4", 32: "Q4_0_4_8",
    33: "Q4_0_8_8", 36: "IQ4_NL_4_4", 37: "IQ4_NL_4_8", 38: "IQ4_NL_8_8", 41: "Q1_0",
}  # fmt: skip
"""Numbers that ggml gave to intermediate results, integers, layouts of one processor that were taken back, and newer types."""
SIZES: Final = {name: (per, wide) for name, per, wide in TYPES.values()}
STEP: Final = 1 << 16
"""Values that are unpacked at a time."""


@dataclass(frozen=True, slots=True)
class Ggml(Packing):
    """`codes` are the stored bytes of this weight; rows of its last dimension follow each other without gaps."""

    type: str
    codes: Part
    heads: int = 0
    added: float = 0.0

    scheme: ClassVar[str] = "GGUF"

    @property
    def kind(self) -> str:
        return f"GGUF {self.type}"

    @property
    def parts(self) -> tuple[Part, ...]:
        return (self.codes,)

    @property
    def row(self) -> int:
        """Values of a stored row; each of a vector's is one, so that a bias can be permuted like the rows of its weight."""
        return self.shape[-1] if len(self.shape) > 1 else 1

    @property
    def row_bytes(self) -> int:
        per, wide = SIZES[self.type]
        return self.row // per * wide

    @property
    def head_rows(self) -> int:
        """Rows of one attention head."""
        return (self.shape[0] // self.heads) if self.heads else 1

    @property
    def held_bytes(self) -> int:
        return (2 * self.head_rows * self.row + 8 * STEP) * 4
