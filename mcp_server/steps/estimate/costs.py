"""Measured constants of the estimate (rules/costs.yaml), checked at load."""

from __future__ import annotations

from functools import cache

from pydantic import Field

from mcp_server.schemas.base import Frozen
from mcp_server.system import paths
from mcp_server.system.yaml_io import load_yaml


class WorkingSet(Frozen):
    """What a method holds per element of the tensor in hand, as measured.

    `narrow`: in 2-byte arithmetic, for 1, 2, 3 … models beside the first; more models go on as the last step did. `wide`: in
    4-byte arithmetic at `len(narrow)` capped to 2 models, converted inputs not counted; a further model takes twice its bytes.
    """

    narrow: list[float] = Field(min_length=1)
    wide: float
    fragments: float = Field(description="blocks of the heap that stay behind, with two models beside the first")
    ns_per_element: float = Field(description="compute time with two models beside the first")

    def bytes_per_element(self, width: int, models: int) -> float:
        if width <= 2:
            return self._narrow(models)
        measured_at = min(2, len(self.narrow))
        return (self.wide + 2 * (self._narrow(models) - self._narrow(measured_at))) * (width / 4)

    def _narrow(self, models: int) -> float:
        known = self.narrow
        step = known[-1] - known[-2] if len(known) > 1 else 0.0
        return known[models - 1] if models <= len(known) else known[-1] + step * (models - len(known))


class MergekitCosts(Frozen):
    process_bytes: int
    start_seconds: float
    margin_bytes: int = Field(description="what the allocator keeps beside the tensors")
    fold_bytes: int = Field(description="what the worker keeps once it has folded adapters into their base")
    fragments_per_model: float = Field(description="further heap blocks for each model beyond two")
    methods: dict[str, WorkingSet]
    other: WorkingSet = Field(description="for a method that was not measured: the largest of those that were")


class StreamCosts(Frozen):
    compile_bytes: int = Field(description="held for a moment by a method's first merge, which compiles its kernels")
    start_seconds: float
    ns_per_element: float
    ns_per_product: float = Field(description="one multiply-add of the products inside a truncated SVD")


class DiskCosts(Frozen):
    slow_bytes_per_second: float
    fast_bytes_per_second: float


class EvidenceCosts(Frozen):
    """A worker that loads a model with transformers: its process, and room for a batch's scores when it evaluates."""

    process_bytes: int = Field(description="Python, torch and transformers, resident")
    scores_bytes: int = Field(description="what the worker allows the scores of a batch")
    window_tokens: int = Field(description="tokens of a text that are scored at once, at least")
    bytes_per_score: int = Field(description="per token and vocabulary entry while a window is scored")
    generation_tokens: int = Field(description="prompts generated at once, times their length")
    usual_prompts: int = Field(description="what an evaluation is estimated for where its suites are not known")
    start_seconds: float = Field(description="imports and opening the tasks")
    load_seconds_per_billion: float = Field(description="of a billion parameters, from a disk that is not in a hurry")
    probe_gflops: float = Field(description="how fast the machine multiplied float32 when the seconds were measured")
    seconds_per_prompt_and_billion: dict[str, float] = Field(description="dtype of the arithmetic → seconds")


class Costs(Frozen):
    mergekit: MergekitCosts
    stream: StreamCosts
    disk: DiskCosts
    evidence: EvidenceCosts
    source: str


@cache
def costs() -> Costs:
    text = (paths.RULES / "costs.yaml").read_text(encoding="utf-8")
    return Costs.model_validate(load_yaml(text, "rules/costs.yaml"))
