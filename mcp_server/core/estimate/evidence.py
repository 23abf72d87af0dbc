"""What verifying and evaluating the result cost: both load it with transformers once, on the CPU."""

from __future__ import annotations

from mcp_server.core.estimate.costs import costs
from mcp_server.core.estimate.work import VOCABULARY, Work
from mcp_server.core.models.estimation import EngineEstimate, Seconds


def verify_cost(work: Work, ram_bytes: float | None) -> EngineEstimate:
    """Structure and values are read in blocks; the last check loads the model and generates a few tokens."""
    return _loaded(work, ram_bytes, models=1)


def evaluate_cost(work: Work, ram_bytes: float | None) -> EngineEstimate:
    """Base, sources and result are measured one after another, each in a fresh process: one model at a time."""
    return _loaded(work, ram_bytes, models=work.inputs + 1)


def _loaded(work: Work, ram_bytes: float | None, models: int) -> EngineEstimate:
    constants = costs().evidence
    rows = max((t.elements for t in work.tensors if any(part in t.name for part in VOCABULARY)), default=0)
    hidden = max(1, min((t.elements for t in work.tensors), default=1))
    parts = {
        "process": constants.process_bytes,
        "weights": int(work.out_bytes * constants.load_factor),
        "activations": int(rows / hidden * constants.activation_bytes_per_vocabulary),
    }
    total = sum(parts.values())
    per_model = work.out_bytes / costs().disk.slow_bytes_per_second
    return EngineEstimate(
        peak_anon_bytes=total,
        page_cache_bytes=work.out_bytes,
        disk_bytes=0,
        seconds=Seconds(low=5.0 * models, high=round(models * (60 + per_model), 1)),
        fits=None if ram_bytes is None else total <= ram_bytes,
        breakdown=parts,
    )
