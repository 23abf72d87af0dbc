"""Are the numbers numbers? Sampled, unless the engine counted while it wrote, or everything is wanted."""

from __future__ import annotations

from collections.abc import Iterator

from mcp_server.formats.checkpoint import FLOATS
from mcp_server.schemas.evidence import Check
from mcp_server.steps.verify.merge import Merge
from mcp_server.steps.verify.reading import count_nonfinite, read_rows, spans


def checks(merge: Merge, *, full: bool) -> Iterator[Check]:
    yield _finite(merge, full=full)
    yield _alive(merge)


def _finite(merge: Merge, *, full: bool) -> Check:
    looked = 0
    for name, tensor in merge.tensors.items():
        if tensor.dtype not in FLOATS:
            continue
        for first, last in spans(tensor, full=full):
            if bad := count_nonfinite(tensor, first, last):
                detail = f"{bad} values of {name} (rows {first} to {last - 1}) are infinite or not a number"
                return Check(name="finite", passed=False, detail=detail)
            looked += (last - first) * (tensor.count // max(tensor.shape[0], 1) if len(tensor.shape) > 1 else tensor.count)
    counted = (merge.provenance.nonfinite or {}) if merge.provenance else {}
    written = sum(counted.get(key, 0) for key in ("merged", "output"))
    if written:
        return Check(name="finite", passed=False, detail=f"the engine wrote {written} values that are not finite")
    total = sum(tensor.count for tensor in merge.tensors.values())
    if looked >= total:
        return Check(name="finite", passed=True, detail=f"all {total:,} values")
    by_engine = "the engine counted none while writing; " if merge.provenance and merge.provenance.nonfinite is not None else ""
    return Check(name="finite", passed=True, detail=f"{by_engine}{looked:,} of {total:,} values sampled (--full reads all)")


def _alive(merge: Merge) -> Check:
    """A matrix that is zero throughout its samples while the base's is not was never written."""
    import numpy as np

    for name, tensor in merge.tensors.items():
        if len(tensor.shape) < 2 or tensor.dtype not in FLOATS:
            continue
        if any(np.any(read_rows(tensor, *span)) for span in spans(tensor, full=False)):
            continue
        twin = merge.base.tensors.get(name) if merge.base else None
        if twin is None or any(np.any(read_rows(twin, *span)) for span in spans(twin, full=False)):
            return Check(name="not_empty", passed=False, detail=f"{name} is zero wherever it was sampled")
    return Check(name="not_empty", passed=True, detail="no weight matrix is empty")
