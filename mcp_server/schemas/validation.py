"""The linter's result."""

from __future__ import annotations

from pydantic import Field

from mcp_server.schemas.base import Frozen, Severity


class Finding(Frozen):
    code: str = Field(examples=["MM101"])
    severity: Severity
    message: str
    where: str = Field(default="", description="path inside the recipe, such as slices[0].sources[1]")
    fix: str = ""
    line: int | None = Field(default=None, description="line of the recipe's text, from 1")
    column: int | None = None


class Validation(Frozen):
    """`ok` is false exactly when a finding is an error."""

    ok: bool
    findings: list[Finding]
    level: str = Field(description="yaml | checkpoints | planner: how deep the checks could go")
    skipped: dict[str, str] = Field(default_factory=dict, description="code → why it could not be decided")
    fixed_recipe: str | None = None
    changes: list[str] = Field(default_factory=list)
    before: list[Finding] = Field(default_factory=list, description="with fix: the findings before the changes")


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
