"""Measured constants of the estimate (rules/costs.yaml), checked at load."""

from __future__ import annotations

from functools import cache

from pydantic import Field

from mcp_server.core import paths
from mcp_server.core.models.base import Frozen
from mcp_server.core.yaml_io import load_yaml


class WorkingSet(Frozen):
    """Bytes per element of the tensor in hand: `constant + per_model · models`, models beside the base, for 2-byte arithmetic."""

    constant: float
    per_model: float
    wide_constant: float = Field(description="the same for 4-byte arithmetic")
    wide_per_model: float
    ns_per_element: float = Field(description="compute time, two models")

    def bytes_per_element(self, width: int, models: int) -> float:
        if width <= 2:
            return self.constant + self.per_model * models
        return (self.wide_constant + self.wide_per_model * models) * (width / 4)


class MergekitCosts(Frozen):
    process_bytes: int
    start_seconds: float
    margin_bytes: int = Field(description="what the allocator keeps beside the tensors")
    methods: dict[str, WorkingSet]
    other: WorkingSet = Field(description="for a method that was not measured: the largest of those that were")


class StreamCosts(Frozen):
    start_seconds: float
    ns_per_element: float


class DiskCosts(Frozen):
    slow_bytes_per_second: float
    fast_bytes_per_second: float


class EvidenceCosts(Frozen):
    """A worker that loads a model with transformers: process, a copy of the weights, and activations."""

    process_bytes: int
    activation_bytes_per_vocabulary: float
    load_factor: float


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
