"""Before any advice about the recipe: what else lies in the folder that explains the figures.

A merge on another base, a swapped tokenizer, weights that changed since, a verification that failed: tuning λ repairs none of
them. The causes are those of `mcp_server.steps.diagnose`; only roots count here, its skill causes are what was just measured.
"""

from __future__ import annotations

from pathlib import Path

from mcp_server.errors import MergingError
from mcp_server.schemas.diagnosis import Cause
from mcp_server.schemas.evidence import Evaluation, Verification
from mcp_server.steps.diagnose import ROOTS, diagnose


def with_causes(found: Evaluation, out: Path) -> Evaluation:
    """The same evaluation with root causes as its first reasons and its advice. `out/evaluation.json` holds it already."""
    try:
        causes = [cause for cause in diagnose(out).findings if cause.code in ROOTS]
    except MergingError as error:
        return found.model_copy(
            update={"notes": [*found.notes, f"what else lies in the folder could not be read: {error.message}"]}
        )
    if not causes:
        causes = _failed_verification(out, found.model)
    if not causes:
        return found
    first = causes[0]
    why = [*(f"{cause.cause} ({cause.evidence})" for cause in causes), *found.why]
    advice = {"action": "repair", "cause": first.code, "why": f"{first.cause}: {first.evidence}", "do": first.next}
    verdict = "adjust" if found.verdict == "passed" else found.verdict
    return found.model_copy(update={"why": why, "next": advice, "verdict": verdict})


def _failed_verification(out: Path, model: str | None) -> list[Cause]:
    """The verification that lies beside the model, if it failed and is not known to be of other files than `model`."""
    try:
        stored = Verification.model_validate_json((out / "verification.json").read_bytes())
    except (OSError, ValueError):
        return []
    wrong = [f"{check.name}: {check.detail}" for check in stored.checks if check.passed is False]
    if stored.verdict not in ("failed", "unreadable") or (None not in (stored.model, model) and stored.model != model):
        return []
    return [
        Cause(
            code="verification_failed",
            cause="the verification beside this model failed",
            evidence="; ".join(wrong) or stored.verdict,
            next="repair what it names, then `model-merging verify` and evaluate again",
        )
    ]


def base_note(found: Evaluation, far_above: float) -> str | None:
    """A base that is far worse than every source on plain text is hardly the one that they were trained from."""
    for name, c in found.capabilities.items():
        if "perplexity" not in c.metric or c.base is None or not c.sources:
            continue
        worst = max(c.sources.values())
        if c.base > far_above * worst:
            return (
                f"{name}: perplexity {c.base:.3g} on the base and at most {worst:.3g} on every source: it may be the wrong "
                "base, not the one that the sources were trained from"
            )
    return None
