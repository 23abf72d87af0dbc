"""Are the numbers numbers? Sampled, unless the engine counted while it wrote, or everything is wanted."""

from __future__ import annotations

from collections.abc import Iterator

from mcp_server.formats.tensors import StoredTensor
from mcp_server.recompute.merge import Merge
from mcp_server.recompute.reading import count_nonfinite, is_float, read_rows, rows_of, spans
from mcp_server.schemas.evidence import Check


def checks(merge: Merge, *, full: bool) -> Iterator[Check]:
    yield _finite(merge, full=full)
    yield _alive(merge)


def _finite(merge: Merge, *, full: bool) -> Check:
    looked = 0
    for name, tensor in merge.tensors.items():
        if not is_float(tensor.dtype):
            continue
        for first, last in spans(tensor.shape, full=full):
            if (bad := count_nonfinite(tensor, first, last)) and not _as_the_base(merge, name, tensor, first, last):
                detail = f"{bad} values of {name} (rows {first} to {last - 1}) are infinite or not a number"
                return Check(name="finite", passed=False, detail=detail)
            looked += (last - first) * rows_of(tensor.shape)[1]
    counted = (merge.provenance.nonfinite or {}) if merge.provenance else {}
    written = sum(counted.get(key, 0) for key in ("merged", "output"))
    if written:
        return Check(name="finite", passed=False, detail=f"the engine wrote {written} values that are not finite")
    total = sum(tensor.count for tensor in merge.tensors.values() if is_float(tensor.dtype))
    if looked >= total:
        return Check(name="finite", passed=True, detail=f"all {total:,} values")
    by_engine = "the engine counted none while writing; " if merge.provenance and merge.provenance.nonfinite is not None else ""
    return Check(name="finite", passed=True, detail=f"{by_engine}{looked:,} of {total:,} values sampled (--full reads all)")


def _as_the_base(merge: Merge, name: str, tensor: StoredTensor, first: int, last: int) -> bool:
    """Buffers may hold infinities on purpose; the base then holds as many in the same rows."""
    twin = merge.base.tensors.get(name) if merge.base else None
    if twin is None or twin.shape != tensor.shape or not is_float(twin.dtype):
        return False
    return count_nonfinite(twin, first, last) == count_nonfinite(tensor, first, last)


def _alive(merge: Merge) -> Check:
    """A matrix that is zero throughout its samples while the base's is not was never written."""
    import numpy as np

    for name, tensor in merge.tensors.items():
        if len(tensor.shape) < 2 or not tensor.count or not is_float(tensor.dtype):
            continue
        if any(np.any(read_rows(tensor, *span)) for span in spans(tensor.shape, full=False)):
            continue
        twin = merge.base.tensors.get(name) if merge.base else None
        if twin is not None and any(np.any(read_rows(twin, *span)) for span in spans(twin.shape, full=False)):
            return Check(name="not_empty", passed=False, detail=f"{name} is zero wherever it was sampled")
    return Check(name="not_empty", passed=True, detail="no weight matrix is empty")
