"""What base, sources and merge answered to the same prompts."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from mcp_server.schemas.base import Frozen

Outcome = Literal["loss", "win", "differs", "same"]


class PromptReplies(Frozen):
    """One prompt, with every model's reply and its score by the suite's own metric."""

    suite: str
    split: Literal["dev", "test"] = "dev"
    prompt: str
    expected: str = ""
    replies: dict[str, str] = Field(description="base, sources by name, merged → reply")
    scores: dict[str, float] = Field(default_factory=dict, description="the same labels → score; empty where none is known")
    outcome: Outcome = Field(
        description="loss: the merge scores below the best source of the suite; win: above it; differs: another reply, same score"
    )


class Tally(Frozen):
    prompts: int
    losses: int
    wins: int
    differs: int
    expert: str | None = Field(default=None, description="the source that the merge is held against: the suite's best")


class KeptReplies(Frozen):
    """replies.json beside a merge: the newest replies of every suite and split, of the weights `model`."""

    model: str | None = Field(default=None, description="SHA-256 of the merge's files then")
    created: str = ""
    replies: list[PromptReplies]
    experts: dict[str, str | None] = Field(default_factory=dict, description="suite → its best source")


class ShownReplies(Frozen):
    """Replies side by side, losses first, then wins, then other differences, then what is the same."""

    output: str
    created: str = ""
    current: bool | None = Field(default=None, description="false: the merge's files have changed since; null: not recorded")
    suites: dict[str, Tally]
    replies: list[PromptReplies]
    found: int = Field(description="that match the selection, on all pages")
    next_offset: int | None = None


class Answers(Frozen):
    """One prompt, asked of base, sources and merge at once."""

    prompt: str
    replies: dict[str, str] = Field(description="base, sources by name, merged → reply (greedy)")
    models: dict[str, str] = Field(default_factory=dict, description="label → folder")
    numerics: str = ""
    seconds: float | None = None
