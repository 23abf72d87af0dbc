"""Products of 8-bit codes with few bfloat16 tokens as products of whole numbers, for processors with tiles for them (AMX).

The codes need not be unpacked then, which takes most of the time for few tokens. Each token is rounded to whole numbers of 15
bits, finer than bfloat16's 8, and split into two of 8 bits: x ≈ size · (128 · high + low). Both products are exact in 32 bits as
long as columns · 127² stays below 2³¹ (133,000 columns).
"""

from __future__ import annotations

from typing import Any, Final

import torch

PARTS: Final = 128
LARGEST: Final = 127 * PARTS
ROWS_AT_ONCE: Final = 16384
"""Their sums take 8 MB with 64 tokens."""


def product(codes: Any, scales: Any, x: Any) -> Any:
    """(tokens, columns) times the transpose of codes (rows, columns) with their scales (rows, 1): (tokens, rows)."""
    tokens = x.float()
    size = tokens.abs().amax(1, keepdim=True) / LARGEST
    whole = (tokens / torch.where(size == 0, 1, size)).round_()
    high = (whole / PARTS).round_()
    both = torch.cat([high, whole - PARTS * high]).to(torch.int8).T
    out = torch.empty(len(x), len(codes), dtype=x.dtype)
    for row in range(0, len(codes), ROWS_AT_ONCE):
        rows = slice(row, row + ROWS_AT_ONCE)
        sums = torch._int_mm(codes[rows], both)
        found = torch.add(sums[:, len(x) :].float(), sums[:, : len(x)], alpha=PARTS)
        out[:, rows] = found.mul_(scales[rows]).T * size
    return out
