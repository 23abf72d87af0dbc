"""How the weights of measured models are held: a dtype where that fits in memory, else 8 or 4 bits, the same for all of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from mcp_server.errors import MergingError
from mcp_server.formats.checkpoint import locate, open_checkpoint
from mcp_server.schemas.job import EvaluateRequest, SweepRequest
from mcp_server.steps.estimate.evidence import WIDTHS
from mcp_server.steps.evaluate.exports import is_gguf
from mcp_server.system.machine import anon_bytes, available_bytes, gib, multiplies_bfloat16

OVERHEAD_BYTES: Final = 900_000_000
"""Python, torch, transformers and lm-eval together, resident: 0.75 to 0.85 GB measured with torch 2.13 on Linux, rounded up."""
BITS: Final = {"int8": 8, "int4": 4}
"""How weights are held that do not fit in 16 bits."""


def needed_bytes(folder: Path, held: str) -> int:
    """Memory of a process that holds the model's weights as `held`: a dtype, or `int8` or `int4`."""
    try:
        shapes = [tensor.shape for tensor in open_checkpoint(str(folder)).tensors.values()]
    except MergingError:  # packed in a way that only its own library reads: what lies on disk is all that is known
        stored = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
        return stored * (2 if held == "float32" else 1) + OVERHEAD_BYTES
    matrices = sum(math.prod(shape) for shape in shapes if len(shape) == 2)
    rest = sum(math.prod(shape) for shape in shapes if len(shape) != 2)
    return round(matrices * WIDTHS[held] + rest * max(2.0, WIDTHS[held])) + OVERHEAD_BYTES


def room() -> int:
    """Bytes that this process can have in all: what is available, and what it holds of that already."""
    return available_bytes() + anon_bytes()


def first_that_fits(folders: Iterable[Path], plain: str, have: int) -> str:
    """The first of `plain`, bfloat16, 8 bits and 4 bits in which each model fits by itself; 4 bits where none does."""
    models = list(dict.fromkeys(folders))
    for held in dict.fromkeys((plain, "bfloat16", *BITS)):
        if all(needed_bytes(folder, held) <= have for folder in models):
            return held
    return "int4"


def held_for(wanted: str, refs: Mapping[str, str]) -> str:
    """How a worker on this machine's processor would hold the weights now: `wanted`, or what fits where that is auto. Raises what
    opening a model raises."""
    if wanted != "auto":
        return wanted
    return first_that_fits(_folders(refs), "bfloat16" if multiplies_bfloat16() else "float32", room())


def _folders(refs: Mapping[str, str]) -> list[Path]:
    """Of the weights that are loaded: of `base+adapter` the base's."""
    return [locate(ref if Path(ref).is_dir() else ref.partition("+")[0]) for ref in refs.values() if not is_gguf(ref)]


def few_bits(request: EvaluateRequest | SweepRequest, refs: Mapping[str, str]) -> str:
    """Said before an evaluation starts: that weights will be held in 8 or 4 bits, and why. Empty where they fit in 16, where that
    was asked for, or where models are elsewhere."""
    if request.dtype != "auto" or (isinstance(request, EvaluateRequest) and request.endpoint):
        return ""
    have = room()
    try:
        if (held := held_for("auto", refs)) not in BITS:
            return ""
        need = max(needed_bytes(folder, "bfloat16") for folder in _folders(refs))
    except (MergingError, OSError):
        return ""
    return f"weights in {BITS[held]} bits, because 16 bits need about {gib(need)} and {gib(have)} are free"
