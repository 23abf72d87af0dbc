"""What the merge itself can tell about its result, counted while the numbers are at hand.

landed          per source: the projection of (merged − reference) on the source's delta, Σ(m−r)·δ / Σδ². 1 means all of the delta
                is in the result, 0.5 half of it, 0 none; other sources' deltas count in so far as they point the same way.
rounding_loss   per source: of the delta energy Σδ² at the elements that the merge meant to change, the share at elements where
                rounding to the output's precision put the reference's value back. A LoRA delta can vanish this way in bf16.
nonfinite       per source (and "merged"): how many values are infinite or not a number.

Sums are kept per tensor and added in the order of the output, so they do not depend on threads or interruptions.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from mcp_server.catalog import threshold


@dataclass
class TensorEvidence:
    """Sums over one tensor. `landing`: source → [Σ(m−r)·δ, Σδ², Σδ² where moved, Σδ² where rounding undid the move].

    `differing`: sources whose bytes are not those that were copied. `digest`: of the bytes that were written, in pieces
    (`formats.digests.TensorDigest`).
    """

    landing: dict[str, list[float]] = field(default_factory=dict)
    nonfinite: dict[str, int] = field(default_factory=dict)
    differing: list[str] = field(default_factory=list)
    digest: dict[str, Any] | None = None

    def as_dict(self) -> dict[str, Any]:
        return {"landing": self.landing, "nonfinite": self.nonfinite, "differing": self.differing, "digest": self.digest}


def total(parts: Iterable[dict[str, Any]]) -> tuple[dict[str, float | None], dict[str, float | None], dict[str, int]]:
    """(landed, rounding_loss, nonfinite) over all tensors, given their evidence in output order."""
    sums: dict[str, list[float]] = {}
    nonfinite: dict[str, int] = {}
    for part in parts:
        for source, values in part["landing"].items():
            held = sums.setdefault(source, [0.0] * 4)
            for i, value in enumerate(values):
                held[i] += value
        for source, count in part["nonfinite"].items():
            nonfinite[source] = nonfinite.get(source, 0) + count
    landed = {source: _share(along, energy) for source, (along, energy, _, _) in sums.items()}
    lost = {source: _share(undone, moved) for source, (_, _, moved, undone) in sums.items()}
    return landed, lost, nonfinite


def rounding_warnings(lost: dict[str, float | None], dtype: str) -> list[str]:
    """A warning for every source of which more than the catalogue's threshold was rounded away."""
    if not any(lost.values()):
        return []
    limit = threshold("rounding_loss")
    step = "leave out --output-format" if dtype.startswith("float8") else "use `out_dtype: float32`"
    return [
        f"{share:.0%} of what {source} adds is too small for {dtype} and was rounded away; {step} to keep it"
        for source, share in lost.items()
        if share is not None and share >= limit
    ]


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole else None
