"""What the catalogue check found."""

from __future__ import annotations

from pydantic import Field

from mcp_server.core.models.base import Frozen


class CheckFinding(Frozen):
    """One fault of the knowledge files: where it is, what is wrong, and what to do."""

    where: str = Field(examples=["rules/strategies/ties.yaml"])
    message: str
    fix: str = ""


class CheckResult(Frozen):
    """`ok` is false exactly when there is a finding."""

    ok: bool
    findings: list[CheckFinding]
    strategies: int
    rules: int
    mergekit: str | None = Field(default=None, description="version that the catalogue was compared with (--engine)")
