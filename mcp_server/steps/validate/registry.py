"""The linter's codes: documented in rules/lint.yaml, each decided by one function here in the package.

A check is a function over a `Context` that yields what it found. It passes by yielding nothing, and is skipped, with a reason,
when what it needs is not known (a source that is not on this machine). Codes that the reader itself reports (`MM1xx` for a value
of the wrong form) have no function: the parser's problems carry them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from mcp_server.schemas.base import Frozen, Severity
from mcp_server.system import paths
from mcp_server.system.yaml_io import load_yaml

if TYPE_CHECKING:
    from mcp_server.steps.validate.context import Context

Level = Literal["yaml", "checkpoints", "resources", "planner"]


class LintRule(Frozen):
    """One code: what it means, why it matters, an example, and how to fix it."""

    code: str = Field(pattern=r"^MM[1-7]\d\d$")
    severity: Severity
    level: Level
    title: str
    what: str
    why: str
    example: str
    fix: str
    fixable: bool = False


@dataclass(frozen=True, slots=True)
class Found:
    """One place where a rule fails. `fix` is for this place; without it the rule's own text is shown."""

    message: str
    where: str = ""
    fix: str = ""


Check = Callable[["Context"], Iterable[Found]]
CHECKS: dict[str, Check] = {}


@cache
def rules() -> dict[str, LintRule]:
    """Code → its documentation, in the order of the file."""
    text = (paths.RULES / "lint.yaml").read_text(encoding="utf-8")
    found = [LintRule.model_validate(row) for row in load_yaml(text, "rules/lint.yaml")["rules"]]
    table = {rule.code: rule for rule in found}
    if len(table) != len(found):
        raise ValueError("rules/lint.yaml gives a code twice")
    return table


def check(code: str) -> Callable[[Check], Check]:
    """Register the function that decides `code`. A code has one function; a second raises."""

    def register(function: Check) -> Check:
        if code in CHECKS:
            raise ValueError(f"{code} is decided twice: {CHECKS[code].__name__} and {function.__name__}")
        CHECKS[code] = function
        return function

    return register


def run_check(code: str, context: Context) -> Iterator[Found]:
    yield from CHECKS[code](context)
