"""How long task vectors are and how they lie to each other: from the factors of adapters, from samples of full models.

‖B·A‖ and the inner product of two products of factors need only r × r matrices, so LoRA adapters are measured without their base
and without forming a delta. Full models, adapters of other kinds and both together are sampled. `compare` measures every weight,
and its figures win.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from mcp_server.errors import MergingError
from mcp_server.formats.absent_base import base_of_adapters
from mcp_server.formats.lora import open_adapter
from mcp_server.formats.tensors import StoredTensor, read_json
from mcp_server.formats.updates import LowRank
from mcp_server.recompute.adapters import Adapter, CannotCompute, adapted_rows, read_adapter
from mcp_server.recompute.reading import read_rows, spans
from mcp_server.steps.inspect.bases import sampled, tensors_of, values

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

MAX_BYTES: Final = 64_000_000
"""Of factors that are read for one source; larger adapters are measured on every second, third, … module."""


@dataclass(frozen=True)
class Figures:
    """Norm of each source's task vector, and cosine (and sign disagreement, where measured) of each pair."""

    norms: dict[str, float] = field(default_factory=dict)
    pairs: dict[tuple[str, str], dict[str, float]] = field(default_factory=dict)
    relative_norm: float | None = None
    origin: str | None = None
    exact: bool = False
    """Every weight was looked at, so that zero is zero."""


def measure(base: Path | None, sources: dict[str, tuple[Path, bool]]) -> Figures:
    """`sources`: name → (folder, whether it is an adapter). Without `base`, LoRA adapters alone are measured."""
    tensors = tensors_of(base) if base is not None else None
    try:
        if all(is_adapter for _, is_adapter in sources.values()):
            stand_in = tensors or base_of_adapters(str(folder) for folder, _ in sources.values())
            opened = {name: open_adapter(str(folder), stand_in).changes for name, (folder, _) in sources.items()}
            if all(change.low_rank is not None for changes in opened.values() for change in changes.values()):
                return _of_factors({name: {n: c.low_rank for n, c in of.items() if c.low_rank} for name, of in opened.items()})
        return _of_samples(base, tensors, sources) if base is not None and tensors is not None else Figures()
    except (MergingError, CannotCompute, OSError, ValueError):
        return Figures()  # what cannot be read is named by the inspection; here the figure is just not known


def from_comparison(details: dict[str, Any], names: dict[str, str]) -> Figures:
    """The figures of `compare -o FILE`; `names` gives the scenario's name for each name in the file."""
    overall = details["overall"]
    norms = {names[s["name"]]: float(s["norm"]) for s in overall["sources"] if s["name"] in names}
    pairs = {}
    for pair in overall["pairs"]:
        one, other = pair["between"]
        if one in names and other in names:
            pairs[names[one], names[other]] = {k: pair[k] for k in ("cosine", "sign_disagreement") if pair[k] is not None}
    relative = [s["relative_norm"] for s in overall["sources"] if s.get("relative_norm") is not None]
    return Figures(norms, pairs, min(relative, default=None), "compare")


def _of_samples(folder: Path, base: dict[str, StoredTensor], sources: dict[str, tuple[Path, bool]]) -> Figures:
    import numpy as np

    kind = str(read_json(folder / "config.json").get("model_type"))
    adapters = {name: read_adapter(where, base, kind) for name, (where, is_adapter) in sources.items() if is_adapter}
    whole = {
        n: found for n, (where, is_adapter) in sources.items() if not is_adapter and (found := tensors_of(where)) is not None
    }
    touched = {name for adapter in adapters.values() for name in adapter.touched}
    held = {name: tensor for name, tensor in base.items() if not adapters or name in touched}
    names = sampled(held, *whole.values())
    if not names:
        return Figures()

    reference = np.concatenate([values(base[n]) for n in names])
    held_by = {name: [values(tensors[n]) for n in names] for name, tensors in whole.items()}
    held_by |= {name: [_adapted(adapter, n, base[n]) for n in names] for name, adapter in adapters.items()}
    deltas = {name: np.concatenate(parts) - reference for name, parts in held_by.items()}
    norms = {name: float(np.linalg.norm(change)) for name, change in deltas.items()}
    products = {(a, b): float(deltas[a] @ deltas[b]) for a, b in itertools.combinations(deltas, 2)}
    shortest = min((norm for norm in norms.values() if math.isfinite(norm)), default=0.0)
    length = float(np.linalg.norm(reference)) if not adapters else 0.0
    return _figures(norms, products, shortest / length if length else None, "samples of the weights")


def _adapted(adapter: Adapter, name: str, stored: StoredTensor) -> Array:
    """The base's sampled values of one tensor as the adapter makes them, where it changes that tensor."""
    import numpy as np

    if name not in adapter.touched:
        return values(stored)
    rows = [(span, read_rows(stored, *span)) for span in spans(stored.shape, full=False)]
    return np.concatenate([adapted_rows(adapter, name, stored.shape, held, span, stored)[0].ravel() for span, held in rows])


def _of_factors(found: dict[str, dict[str, LowRank]]) -> Figures:
    import numpy as np

    everything = sorted({target for parts in found.values() for target in parts})
    largest = max((sum(p.a.nbytes + p.b.nbytes for p in parts.values()) for parts in found.values()), default=0)
    chosen = everything[:: max(1, math.ceil(largest / MAX_BYTES))]
    squares = dict.fromkeys(found, 0.0)
    products = dict.fromkeys(itertools.combinations(found, 2), 0.0)
    for target in chosen:
        factors = {name: _factors(parts[target]) for name, parts in found.items() if target in parts}
        for name, (a, b) in factors.items():
            squares[name] += float(np.sum((b.T @ b) * (a @ a.T)))
        for one, other in itertools.combinations(factors, 2):
            (a1, b1), (a2, b2) = factors[one], factors[other]
            if b1.shape[0] == b2.shape[0] and a1.shape[1] == a2.shape[1]:
                products[one, other] += float(np.sum((b1.T @ b2) * (a1 @ a2.T)))
    scale = math.sqrt(len(everything) / len(chosen)) if chosen else 1.0
    norms = {name: math.sqrt(square) * scale if square >= 0 else math.nan for name, square in squares.items()}
    figures = _figures(norms, {k: v * scale**2 for k, v in products.items()}, None, "the adapters' factors")
    return replace(figures, exact=len(chosen) == len(everything))


def _figures(norms: dict[str, float], products: dict[tuple[str, str], float], relative: float | None, origin: str) -> Figures:
    pairs = {
        (a, b): {"cosine": round(max(-1.0, min(1.0, product / (norms[a] * norms[b]))), 4)}
        for (a, b), product in products.items()
        if norms[a] > 0 and norms[b] > 0
    }
    rounded = {name: float(f"{norm:.4g}") for name, norm in norms.items()}
    return Figures(rounded, pairs, None if relative is None else float(f"{relative:.3g}"), origin)


def _factors(part: LowRank) -> tuple[Array, Array]:
    """(A, B) with the scale in B, float64."""
    a = read_rows(part.a, 0, part.a.shape[0]).astype("float64")
    return a, part.scale * read_rows(part.b, 0, part.b.shape[0]).astype("float64")
