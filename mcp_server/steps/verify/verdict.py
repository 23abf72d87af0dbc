"""The checks in order, and what they add up to."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from mcp_server.errors import MergingError
from mcp_server.formats.folder import require_folder_there
from mcp_server.formats.recipe import read_recipe
from mcp_server.recompute.merge import Merge, open_merge
from mcp_server.schemas.evidence import Check, Verification
from mcp_server.steps.verify import agreement, landing, origin, settings, structure, values

Outcome = Literal["verified", "failed", "unreadable", "inconclusive"]


def verify(
    out: Path,
    *,
    full: bool = False,
    recipe: str | None = None,
    base: str | None = None,
    sources: Sequence[str] = (),
    before: Verification | None = None,
    most: int | None = None,
) -> Verification:
    """Check the merged model or adapter in folder `out`.

    full      compute every value again, not three small ranges of every tensor
    recipe    recipe text, for a folder that holds none (`mergekit_config.yml` or `merge_provenance.json`)
    base      where the base is: it stands for the recipe's own, or says what to compare with where there is no recipe
    sources   the same for the sources, in the recipe's order: FOLDER, HUB/ID, BASE+ADAPTER, or an adapter of `base`
    before    an earlier answer about the same files: its recomputation is taken over, unless a check that is made now fails
    most      of tensors that must be read whole, compute about so many elements
    Raises `NotFound` when there is no such folder and `Malformed` for a recipe that cannot be read; whatever is wrong
    with the model itself is an answer, not an error.
    """
    require_folder_there(out)
    if recipe is not None:
        read_recipe(recipe, "the given recipe")
    try:
        merge = open_merge(out, recipe, base, sources)
    except MergingError as error:
        found = Check(name="readable", passed=False, detail=f"{error.message}; {error.next_step}")
        return Verification(verdict="unreadable", checks=[found], output=str(out))
    checks = [
        Check(name="readable", passed=True, detail=f"{len(merge.tensors)} tensors in {len(merge.files)} files, headers sound"),
        *structure.checks(merge),
        *agreement.checks(merge, full=full),
        *settings.checks(merge),
        *values.checks(merge, full=full),
        *origin.checks(merge, full=full),
    ]
    if before is not None and not any(check.passed is False for check in checks):
        named = {check.name for check in checks}
        checks += [check for check in before.checks if check.name not in named]
        return before.model_copy(update={"verdict": verdict_of(checks), "checks": checks, "output": str(out)})
    landed = landing.measure(merge, full=full, most=most)
    checks += landed.checks
    return Verification(
        verdict=verdict_of(checks), checks=checks, landed=landed.landed, rounding_loss=landed.rounding_loss, output=str(out)
    )


def verdict_of(checks: Sequence[Check]) -> Outcome:
    if any(check.name == "readable" and not check.passed for check in checks):
        return "unreadable"
    if any(check.passed is False for check in checks):
        return "failed"
    return "inconclusive" if any(check.passed is None for check in checks) else "verified"


def with_check(verification: Verification, check: Check) -> Verification:
    """The same verification with one more check, and the verdict that follows."""
    checks = [*verification.checks, check]
    return verification.model_copy(update={"checks": checks, "verdict": verdict_of(checks)})


__all__ = ["Merge", "Outcome", "verdict_of", "verify", "with_check"]
