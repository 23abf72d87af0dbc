"""What is wrong with a merge, and what to do: causes, each with the evidence that shows it."""

from __future__ import annotations

from pydantic import Field

from mcp_server.schemas.base import Frozen


class Cause(Frozen):
    """One cause. `code` is stable; `evidence` quotes the figures that show it."""

    code: str = Field(examples=["wrong_base"])
    cause: str
    evidence: str
    next: str


class Diagnosis(Frozen):
    """`ok` is true when nothing was found. What could not be looked at stands in `unknown`; it accuses nobody."""

    ok: bool
    findings: list[Cause] = Field(default_factory=list, description="the most likely root first")
    looked_at: list[str] = Field(default_factory=list)
    unknown: list[str] = Field(default_factory=list, description="evidence that is not there, and the command that makes it")
    output: str = ""
