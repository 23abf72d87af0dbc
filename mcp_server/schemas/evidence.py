"""Verification and evaluation results."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from mcp_server.schemas.base import Frozen


class Check(Frozen):
    name: str
    passed: bool | None = Field(description="null: could not be decided")
    detail: str


class Verification(Frozen):
    verdict: Literal["verified", "failed", "unreadable", "inconclusive"]
    checks: list[Check]
    landed: dict[str, float | None] = Field(default_factory=dict, description="source → projection of merged−base on its delta")
    rounding_loss: dict[str, float | None] = Field(default_factory=dict)
    output: str = ""
    model: str | None = Field(default=None, description="SHA-256 of the merge's files then; null: not noted")


class Interval(Frozen):
    low: float
    high: float


class ExportFigure(Frozen):
    """What a GGUF export scores, and what that is against the merge in 16 bits on the same prompts."""

    figure: float | None
    change: float | None = Field(default=None, description="figure − merged")
    ci: Interval | None = Field(default=None, description="95 % interval of the change")
    same_replies: int | None = Field(default=None, description="of n, word for word the merge's")


class Capability(Frozen):
    """One capability, measured on every model with the same prompts. `merged` and the rest are the suite's primary metric."""

    suite: str
    metric: str
    higher_is_better: bool = True
    n: int
    base: float | None = None
    sources: dict[str, float] = Field(default_factory=dict)
    expert: str | None = Field(default=None, description="the source that is best at it")
    merged: float | None = None
    target: float | None = Field(default=None, description="what the merge itself must reach, where no source is the measure")
    exports: dict[str, ExportFigure] = Field(default_factory=dict, description="quantisation → what the export scores")
    retention: float | None = Field(default=None, description="merged ÷ expert")
    gain_recovered: float | None = Field(
        default=None,
        description="(merged − base) ÷ (expert − base); null when they differ by less than two standard errors",
    )
    ci: dict[str, Interval] = Field(default_factory=dict, description="'merged', 'gain_recovered', … → 95 % interval")
    detail: dict[str, Any] = Field(default_factory=dict, description="secondary metrics per model")


class Generation(Frozen):
    """How one model answered: what was computed now, and how fast. Remembered answers cost nothing and are not timed."""

    asked: int
    computed: int
    tokens_per_second: float | None = Field(
        default=None, description="over computed generations, batched; null: nothing generated"
    )
    seconds: float = 0.0


class Evaluation(Frozen):
    capabilities: dict[str, Capability]
    cross_context: dict[str, dict[str, float]] = Field(
        default_factory=dict, description="source → context → share of replies that show the source's own behaviour"
    )
    cross_context_ci: dict[str, dict[str, Interval]] = Field(default_factory=dict)
    own_context: dict[str, str] = Field(default_factory=dict, description="source → the context that it was trained for")
    perplexity_ratio: float | None = Field(default=None, description="merged ÷ best source; above 1.1 adjust, above 2 failed")
    verdict: Literal["passed", "adjust", "failed", "inconclusive"]
    why: list[str] = Field(default_factory=list)
    prompts_needed: dict[str, int] = Field(default_factory=dict, description="capability → prompts that would decide it")
    next: dict[str, Any] | None = Field(default=None, description="the next recipe to try, and why")
    models: dict[str, str] = Field(default_factory=dict, description="label → folder")
    created: str = Field(default="", description="UTC, ISO 8601")
    model: str | None = Field(default=None, description="SHA-256 of the merge's files; null: not measured here")
    exports: dict[str, str] = Field(default_factory=dict, description="label of a GGUF → SHA-256 of its files, joined")
    limit: int | None = None
    seconds: float | None = None
    split: Literal["dev", "test"] = "dev"
    limits: dict[str, int | None] = Field(default_factory=dict, description="suite → prompts used; null: all")
    generation: dict[str, Generation] = Field(default_factory=dict, description="label → speed")
    peak_rss_bytes: int | None = Field(default=None, description="of the measuring process, all models one after the other")
    numerics: str = Field(default="", description="dtype, batch and device of the measurement")
    tables: dict[str, dict[str, Any]] = Field(default_factory=dict, description="suite → label → confusion counts")
    notes: list[str] = Field(default_factory=list)
    path: str | None = Field(default=None, description="evaluation.json, this result as a file")


class EvaluationRun(Frozen):
    """One run in a merge's history."""

    created: str = ""
    split: Literal["dev", "test"]
    suites: dict[str, int] = Field(description="suite → prompts")
    merged: dict[str, float | None] = Field(description="capability → the merge's figure")
    verdict: str
    model: str | None = Field(default=None, description="SHA-256 of the merge's files then")
    current: bool | None = Field(default=None, description="false: the merge's files have changed since; null: not recorded")
    numerics: str = ""
    seconds: float | None = None


class EvaluationList(Frozen):
    output: str
    runs: list[EvaluationRun] = Field(description="newest first")


class SuiteInfo(Frozen):
    """One suite that can be measured here."""

    name: str
    capability: str
    title: str = ""
    metric: str | None = None
    needs: Literal["replies", "likelihoods"] = "replies"
    prompts: dict[str, int | None] = Field(description="split → number of prompts; null: only its task knows")
    minutes: dict[str, float | None] = Field(
        default_factory=dict,
        description="split → minutes for one model of a billion parameters on two cores, from measured speed",
    )
    shipped: bool = True
    note: str = ""


class SuiteList(Frozen):
    suites: list[SuiteInfo]
    hint: str = ""


class SweepCandidate(Frozen):
    """One recipe that was tried, with what it scored on the development split."""

    name: str
    recipe: str = Field(description="the YAML text")
    settings: dict[str, str] = Field(default_factory=dict, description="what was set on the plan, as for `render --set`")
    scores: dict[str, float | None] = Field(default_factory=dict, description="capability → merged figure")
    gains: dict[str, float | None] = Field(default_factory=dict, description="capability → gain, or share of a target")
    intervals: dict[str, Interval] = Field(default_factory=dict, description="capability → 95 % interval of its gain")
    perplexity_ratio: float | None = None
    prompts: dict[str, int] = Field(default_factory=dict, description="capability → prompts that the figure stands on")
    verdict: str | None = None
    pareto: bool = False
    stopped: str | None = Field(default=None, description="why it was not measured to the end, or why it failed")
    seconds: float | None = None
    attempts: int = Field(default=1, description="more than one: a worker died and the task ran again")


class Sweep(Frozen):
    """A bake-off: chosen on dev, reported once on test."""

    candidates: list[SweepCandidate]
    winner: str | None
    why: str = ""
    sources: dict[str, dict[str, float]] = Field(
        default_factory=dict, description="capability → label → figure on dev, with 'base'"
    )
    test: Evaluation | None = Field(default=None, description="the winner on the test split")
    recipe_path: str | None = None
    model_path: str | None = None
    path: str | None = None
    executor: str = "local"
    workers: int = 1
    minutes: float | None = Field(default=None, description="that it was given; null: it tried a list")
    notes: list[str] = Field(default_factory=list, description="how candidates were made and measured, where that is not usual")
    limit: int | None = Field(default=None, description="prompts per suite of the whole measurement; null: all")
    seconds: float | None = None


class ReportResult(Frozen):
    html: str
    markdown: str | None = None
    bytes: int
    current: dict[str, bool | None] = Field(
        default_factory=dict,
        description="evaluation, verification, replies → of the weights that lie here now; false: measure again; null: not noted",
    )
    left_out: list[str] = Field(default_factory=list, description="files that are not what their name says, and why")
