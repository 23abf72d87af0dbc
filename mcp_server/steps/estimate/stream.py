"""What the stream engine holds: the process, block buffers for each thread, and the factors of one tensor's adapters.

Nothing grows with the model. The bound itself belongs to the engine (`engine.memory`); here the work is put into its terms.
A method's first merge on a machine also compiles its kernels, which holds more for a moment (measured: rules/costs.yaml); whether
they are compiled is seen from numba's cache beside the engine, so that every later estimate is tight.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from mcp_server import engine
from mcp_server.engine.memory import MergeShape, peak_anon
from mcp_server.engine.signatures import SIGNATURES
from mcp_server.formats.quantised.ggml import Ggml
from mcp_server.formats.quantised.part import Packing
from mcp_server.steps.estimate.costs import costs
from mcp_server.steps.estimate.work import Work

THINNING = {
    "magnitude": "counting.count_low",
    "outliers": "kernels.drop_largest",
    "random": "random_numbers.keep_random",
    "della": "random_numbers.keep_with_probability",
}
"""A method's way of thinning deltas → a kernel that every such merge calls. A test holds them to it."""
SELECTIVE = {
    "nearswap": "nearswap", "ram": "ram", "ramplus_tl": "count_sharing", "sce": "variance", "arcee_fusion": "take_from",
}  # fmt: skip
"""A method that decides element by element → a kernel of its own."""
UNPACKING = {
    "Codebook": "codebook",
    "RowScaledInt8": "row_scaled",
    "Scaled": "by_byte",
    "Float4": "nibbles",
    "TurnedFloat4": "nibbles_turned",
    "PackedRows": "nibbles_with_zero",
    "PackedColumns": "nibbles_with_zero",
    "PackedGemv": "nibbles_with_zero",
}
"""A layout of packed weights → a kernel that reads it; GGUF's types have one each."""
LOOPED = frozenset({
    "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS",
})  # fmt: skip
"""GGUF's types that are read by a compiled loop, named like its type; the others by numpy. A test holds them to it."""
CODECS = {2: ("_widen_bf16", "_narrow_bf16")}
"""Stored bytes per element → the kernels that read and write it; float32 needs none."""


def breakdown(work: Work, threads: int | None) -> dict[str, int]:
    """Part → bytes; the sum is the upper bound of the engine's anonymous memory. Threads default to the machine's cores."""
    shape = MergeShape(
        method=work.method,
        deltas=work.deltas,
        threads=threads or os.cpu_count() or 1,
        row=max((tensor.row for tensor in work.tensors), default=1),
        largest=work.largest.elements,
        factors=work.factors,
        stored_bytes=max((width for tensor in work.tensors for width in tensor.stored_bytes), default=4),
        out_bytes=max((tensor.out_bytes // max(1, tensor.elements) for tensor in work.tensors), default=4),
        held=work.held,
    )
    widths = {width for tensor in work.tensors for width in (*tensor.stored_bytes, tensor.work_bytes)}
    unpacking = {kernel for packing in work.packings if (kernel := unpacking_kernel(packing)) is not None}
    kernels = [*codecs_of(widths), *kernels_of(work.method), *unpacking, "codecs.count_nonfinite"]
    return named(peak_anon(shape) | compiling(kernels))


def unpacking_kernel(packing: Packing) -> str | None:
    """The kernel that reads a packed weight, where one does."""
    if isinstance(packing, Ggml):
        return f"unpack/ggml_kernels._{packing.type.lower()}" if packing.type in LOOPED else None
    layout = type(packing).__name__
    return f"unpack/kernels.{UNPACKING[layout]}" if layout in UNPACKING else None


def named(parts: dict[str, int]) -> dict[str, int]:
    """The parts under names that are one word, as JSON keys want them."""
    return {part.replace(" ", "_"): size for part, size in parts.items()}


def compiling(kernels: Iterable[str]) -> dict[str, int]:
    """What numba holds while it compiles, unless all of these are in its cache."""
    return {} if all(compiled(kernel) for kernel in kernels) else {"compiling kernels": costs().stream.compile_bytes}


def codecs_of(widths: Iterable[int]) -> list[str]:
    """The kernels that read and write these stored widths (bytes per element)."""
    return [f"codecs.{name}" for width in widths for name in CODECS.get(width, ())]


def kernels_of(method: str) -> list[str]:
    """The kernels that tell whether a method finds everything compiled."""
    signature = SIGNATURES.get(method)
    thinning = THINNING.get(signature.sparsify) if signature else None
    own = f"selective_kernels.{SELECTIVE[method]}" if method in SELECTIVE else None
    return [kernel for kernel in (thinning, own, "kernels.elect" if signature and signature.elect else None) if kernel]


def compiled(kernel: str) -> bool:
    """Whether numba's cache holds `module.function`, compiled from the source as it is now."""
    module, _, function = kernel.partition(".")
    source = Path(engine.__file__).parent / f"{module}.py"
    configured = os.environ.get("NUMBA_CACHE_DIR")
    cache = [Path(configured)] if configured else [source.parent / "__pycache__"]
    written = source.stat().st_mtime
    return any(index.stat().st_mtime >= written for folder in cache for index in folder.rglob(f"{source.stem}.{function}-*.nbi"))
