"""What mergekit-yaml holds in memory, tensor by tensor, as its executor goes through the graph.

It works in the order of tensor names. At any moment it holds the process itself, the finished tensors of the shard that is not
yet full (`--out-shard-size` counts bytes), and the working set of the tensor in hand: that depends on the method, and for methods
that rank whole tensors it is many times the tensor. Inputs are mapped files, which the kernel can drop, unless the recipe's dtype
makes mergekit convert them. Slices change nothing: planning is per tensor.

Buffers of up to 32 MiB (glibc's largest mmap threshold) come from the C library's heap, which keeps some of them; larger ones go
back at once. How many stay differs by method and was measured; beside the tensors of a large model they hardly count.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from mcp_server.steps.estimate.costs import MergekitCosts, WorkingSet, costs
from mcp_server.steps.estimate.work import OutputTensor, Work

HEAP_BLOCK_BYTES: Final = 32 * 2**20


@dataclass(frozen=True, slots=True)
class Peak:
    """Where the peak is: bytes of the shard buffer, of the tensor in hand, and of converted inputs; and which tensor it is."""

    buffer: int
    working: int
    converted: int
    tensor: str

    @property
    def total(self) -> int:
        return self.buffer + self.working + self.converted


def peak_of(work: Work, shard_size: int) -> Peak:
    """Walk the output in mergekit's order and take the moment at which most is held."""
    table = working_set(work.method)
    buffer = most = 0
    peak = Peak(0, 0, 0, "")
    for tensor in sorted(work.tensors, key=lambda t: t.name):
        working, converted = _working(tensor, table, work), _converted(tensor)
        kept_bytes = 0 if work.views and not converted else tensor.out_bytes
        if (held := buffer + working + converted) > most:
            peak, most = Peak(buffer, working, converted, tensor.name), held
        if (held := buffer + kept_bytes) > most:
            peak, most = Peak(held, 0, 0, tensor.name), held
        if buffer and buffer + kept_bytes > shard_size:
            buffer = 0
        buffer += kept_bytes
    return peak


def smallest_shard(work: Work, budget_bytes: int) -> int | None:
    """The largest round shard size with which the merge stays inside the budget, or None when no size helps."""
    for size in (5_000_000_000, 2_000_000_000, 1_000_000_000, 500_000_000, 200_000_000, 100_000_000):
        if anon_bytes(work, size) <= budget_bytes:
            return size
    return None


def anon_bytes(work: Work, shard_size: int) -> int:
    return sum(breakdown(work, shard_size).values())


def breakdown(work: Work, shard_size: int) -> dict[str, int]:
    """Part → bytes; the sum is the upper bound of the anonymous memory of mergekit and the worker that watches it."""
    constants: MergekitCosts = costs().mergekit
    peak = peak_of(work, shard_size)
    parts = {
        "process": constants.process_bytes + constants.margin_bytes,
        "largest_tensor": peak.working + peak.converted,
        "shard_buffer": peak.buffer,
        "heap_fragments": _fragments(work),
    }
    if work.adapters:
        parts["folding"] = constants.fold_bytes
    return parts | ({"gates": work.resident_bytes} if work.resident_bytes else {})


def _fragments(work: Work) -> int:
    """Heap blocks that stay behind, each as large as the largest buffer that comes from the heap."""
    sizes = (tensor.elements * tensor.work_bytes for tensor in work.tensors)
    block = max((size for size in sizes if size <= HEAP_BLOCK_BYTES), default=0)
    further = max(0, work.inputs - 3) * costs().mergekit.fragments_per_model
    return int(block * (working_set(work.method).fragments + further)) if not work.views else 0


def working_set(method: str) -> WorkingSet:
    return costs().mergekit.methods.get(method, costs().mergekit.other)


def _working(tensor: OutputTensor, table: WorkingSet, work: Work) -> int:
    models = max(1, work.inputs - 1)
    return int(tensor.elements * table.bytes_per_element(tensor.work_bytes, models))


def _converted(tensor: OutputTensor) -> int:
    """Inputs whose stored width is not the merge's are converted, whole, into anonymous memory."""
    return sum(tensor.elements * tensor.work_bytes for stored in tensor.stored_bytes if stored != tensor.work_bytes)
