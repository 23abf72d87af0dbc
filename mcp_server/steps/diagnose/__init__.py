"""From a merge that disappoints to the cause: rules over its record, weights, sources, tokenizer and evaluation.

A cause is named only with the figures that show it. Where a root cause is found, what merely follows from it is left out, because
advice about a consequence (another method, a smaller lambda) would send the reader to tune a good recipe.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from mcp_server.schemas.diagnosis import Diagnosis
from mcp_server.steps.diagnose import skills, weights
from mcp_server.steps.diagnose.evidence import read_evidence

__all__ = ["CONSEQUENCES", "ROOTS", "diagnose"]

ROOTS: Final = frozenset(
    {
        "damaged_file", "wrong_base", "adapter_of_another_base", "tokenizer_swapped", "tokenizer_misfit", "template_changed",
        "config_changed", "weights_changed", "not_finite", "empty_weights", "structure_wrong", "does_not_load", "broken_source",
        "source_changed", "scale_absurd", "copies_add_up", "nothing_arrived",
    }
)  # fmt: skip
CONSEQUENCES: Final = frozenset(
    {
        "leak", "too_few_prompts", "source_too_weak", "one_skill_gone", "averaged_away", "skills_collide", "language_hurt",
        "precision_lost", "safety_lost",
    }
)  # fmt: skip
HIDES: Final = {
    "damaged_file": frozenset({"weights_changed", "structure_wrong", "empty_weights", "not_finite"}),
    "wrong_base": frozenset({"scale_absurd", "copies_add_up", "weights_changed"}),
    "scale_absurd": frozenset({"copies_add_up"}),
    "tokenizer_swapped": frozenset({"template_changed", "tokenizer_misfit"}),
    "not_finite": frozenset({"weights_changed", "does_not_load", "scale_absurd", "source_subtracted"}),
    "empty_weights": frozenset({"weights_changed"}),
    "source_changed": frozenset({"weights_changed", "scale_absurd", "source_subtracted"}),
    "adapter_of_another_base": frozenset({"structure_wrong"}),
    "leak": frozenset({"one_skill_gone", "skills_collide", "averaged_away", "source_too_weak"}),
    "source_too_weak": frozenset({"language_hurt"}),
}
"""Root → what follows from it and is no cause of its own."""


def diagnose(out: Path) -> Diagnosis:
    """What is wrong with the merge in folder `out`. Reads headers, samples of weights and the evidence beside them; runs nothing.

    Raises `NotFound` when there is no such folder.
    """
    known = read_evidence(out)
    found = [*weights.causes(known), *skills.causes(known)]
    codes = {cause.code for cause in found}
    hidden = {code for root in codes for code in HIDES.get(root, ())} | (CONSEQUENCES if codes & ROOTS else set())
    kept = {cause.code: cause for cause in reversed(found) if cause.code not in hidden}
    order = list(dict.fromkeys(cause.code for cause in found if cause.code in kept))
    return Diagnosis(
        ok=not kept,
        findings=[kept[code] for code in order],
        looked_at=known.looked_at,
        unknown=known.unknown,
        output=str(out),
    )
