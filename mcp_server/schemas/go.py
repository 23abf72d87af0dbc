"""One call from sources to a merge, with every step's result kept under an id or beside the model."""

from __future__ import annotations

from pydantic import Field

from mcp_server.schemas.base import Frozen, Verdict
from mcp_server.schemas.estimate import Seconds
from mcp_server.schemas.job import JobStatus


class Prepared(Frozen):
    """What inspect, recommend, render, validate and estimate say together. `stop` is why no merge follows, or empty."""

    verdict: Verdict
    because: str
    strategy: str | None = None
    weights: dict[str, float] = Field(default_factory=dict)
    warnings: list[str] = Field(default_factory=list)
    questions: list[str] = Field(default_factory=list, description="put them to the user in one message")
    findings: list[str] = Field(default_factory=list, description="the linter's, errors first")
    engine: str | None = None
    peak_anon_bytes: int | None = None
    disk_bytes: int | None = None
    seconds: Seconds | None = Field(default=None, description="of the merge itself; measuring takes minutes more")
    fits: bool | None = None
    suites: list[str] = Field(default_factory=list, description="what to measure afterwards")
    plan_id: str | None = None
    recipe_id: str | None = None
    absent: list[str] = Field(default_factory=list, description="models to be made or fetched first, by ref")
    stop: str = ""


class Gone(Frozen):
    """`prepared`, and the merge that was started or made of it."""

    prepared: Prepared
    job: JobStatus | None = None
    output: str | None = None
    verification: str | None = None
    evaluation: str | None = None
    report: str | None = None
    next: str = ""
