"""The base of every result and request model, and words that several of them share."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict


class Frozen(BaseModel):
    """Unknown fields are errors, instances do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


Engine = Literal["auto", "stream", "mergekit"]
EngineId = Literal["stream", "mergekit"]
OutputFormat = Literal["fp8"]
"""How weights are stored, where that is not the recipe's dtype."""
Space = Literal["weights", "core", "shared"]
"""Where a method's rule for single elements is applied when adapters become one: see `engine.core_space`."""
Severity = Literal["error", "warning", "note"]
Verdict = Literal["merge", "merge_with_caution", "retrain_combined", "route", "distill", "train_first", "cannot_merge"]


class Message(Frozen):
    """A warning or note with a stable code."""

    code: str
    message: str
