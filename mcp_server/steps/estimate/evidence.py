"""What verifying and evaluating the result cost: both load it with transformers, on the CPU.

Weights are held as bfloat16 where the processor multiplies that, else as float32 (the workers choose so). Verifying feeds one
prompt. Evaluating holds, whichever is more, the scores of a batch of prompts (bounded by the worker, but one window of a text is
never divided) or the keys and values of a batch that generates. Models are measured one after another.
"""

from __future__ import annotations

from typing import Final

from mcp_server.formats.tensor_names import vocabulary_tensor
from mcp_server.schemas.estimate import EngineEstimate
from mcp_server.steps.estimate.costs import EvidenceCosts, costs
from mcp_server.steps.estimate.minutes import general_rate, spent
from mcp_server.steps.estimate.work import Work
from mcp_server.system.machine import multiplies_bfloat16

WIDTHS: Final = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0, "int8": 1.015, "int4": 0.63}
"""How a worker may hold weights → bytes for each: the codes, their scales (of rows of 512 and more; of 32 numbers) and holes."""
CACHED: Final = ("k_proj.weight", "v_proj.weight")
"""Their rows are what a token leaves in the cache of keys and values."""

GENERATION_WIDTH: Final = 4
"""Bytes a number while replies are made: keys and values in float32, or in bfloat16 and what attention makes of them."""


def verify_cost(work: Work, ram_bytes: float | None) -> EngineEstimate:
    """Structure and values are read in blocks; the last check, which needs the memory, loads the model and generates a little."""
    return _loaded(work, ram_bytes, costs().evidence, models=1, scores=0)


def evaluate_cost(work: Work, ram_bytes: float | None) -> EngineEstimate:
    """Base, sources and result answer the same prompts, one model at a time."""
    constants = costs().evidence
    rows = [tensor.elements // tensor.row for tensor in work.tensors if vocabulary_tensor(tensor.name)]
    window = constants.window_tokens * max(rows, default=0) * constants.bytes_per_score
    cached = sum(tensor.elements // tensor.row for tensor in work.tensors if any(part in tensor.name for part in CACHED))
    generation = constants.generation_tokens * cached * GENERATION_WIDTH
    return _loaded(work, ram_bytes, constants, models=work.inputs + 1, scores=max(constants.scores_bytes, window, generation))


def _loaded(work: Work, ram_bytes: float | None, constants: EvidenceCosts, models: int, scores: int) -> EngineEstimate:
    parts = {"process": constants.process_bytes, "weights": work.elements * load_width()}
    if scores:
        parts["scores"] = scores
    settings: dict[str, str] = {}
    for held, width in WIDTHS.items():
        if ram_bytes is None or sum(parts.values()) <= ram_bytes:
            break
        if width < parts["weights"] / max(work.elements, 1):
            parts["weights"], settings = round(work.elements * width), {"weights": held}
    total = sum(parts.values())
    prompts = constants.usual_prompts if scores else 1
    seconds = spent([work.elements] * models, prompts * general_rate("auto").seconds, sure=False)
    return EngineEstimate(
        peak_anon_bytes=total,
        page_cache_bytes=work.out_bytes,
        disk_bytes=0,
        seconds=seconds,
        fits=None if ram_bytes is None else total <= ram_bytes,
        breakdown=parts,
        settings=settings,
    )


def load_width() -> int:
    """Bytes per weight once a worker has loaded it: 2 where the processor multiplies bfloat16, else 4."""
    return 2 if multiplies_bfloat16() else 4
