"""The linter as a gate: what starts a merge asks here first, and an error stops it before anything is written."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from mcp_server.core.errors import BadInput, Incompatible, Malformed, NotAModel, NotFound
from mcp_server.core.models.validation import Finding
from mcp_server.core.validate.run import validate

KINDS: Final[dict[str, type[BadInput]]] = {
    "MM301": NotFound, "MM302": NotAModel, "MM401": NotAModel, "MM405": NotAModel, "MM304": Incompatible, "MM305": Incompatible,
    "MM306": Incompatible, "MM403": Incompatible, "MM308": Malformed,
}  # fmt: skip
"""Code → the kind of error; MM1xx is `Malformed`, the rest `BadInput`."""


def require_valid(text: str, folder: Path | None = None) -> list[Finding]:
    """Warnings and notes of a recipe that may run. Raises for the first error, with how many more there are.

    Output, disk and memory are not looked at: whoever starts a job checks those against the job's own settings.
    """
    found = validate(text, folder=folder)
    errors = [finding for finding in found.findings if finding.severity == "error"]
    if not errors:
        return found.findings
    first = errors[0]
    kind = KINDS.get(first.code, Malformed if first.code.startswith("MM1") else BadInput)
    more = f" (and {len(errors) - 1} more; `model-merging validate` lists them)" if len(errors) > 1 else ""
    where = f" at {first.where}" if first.where else ""
    raise kind(f"{first.code}{where}: {first.message}{more}", first.fix, codes=[finding.code for finding in errors])
