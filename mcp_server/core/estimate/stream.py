"""What the stream engine holds: the process, block buffers for each thread, and the factors of one tensor's adapters.

Nothing grows with the model. The bound itself belongs to the engine (`engine.memory`); here the work is put into its terms.
"""

from __future__ import annotations

import os

from mcp_server.core.estimate.work import Work
from mcp_server.engine.memory import MergeShape, peak_anon


def breakdown(work: Work, threads: int | None) -> dict[str, int]:
    """Part → bytes; the sum is the upper bound of the engine's anonymous memory. Threads default to the machine's cores."""
    shape = MergeShape(
        method=work.method,
        deltas=work.deltas,
        threads=threads or os.cpu_count() or 1,
        row=max((tensor.row for tensor in work.tensors), default=1),
        largest=work.largest.elements,
        factors=work.factors,
        stored_bytes=max(width for tensor in work.tensors for width in tensor.stored_bytes),
        out_bytes=max(-(-tensor.out_bytes // max(1, tensor.elements)) for tensor in work.tensors),
    )
    return {part.replace(" ", "_"): size for part, size in peak_anon(shape).items()}
