"""Causes that the files show: another base, swapped tokenizers, changed or damaged weights, absurd scales, lost precision."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from mcp_server.catalog import threshold
from mcp_server.engine.signatures import SIGNATURES
from mcp_server.schemas.diagnosis import Cause
from mcp_server.steps.diagnose.evidence import Known

AGAIN: Final = "merge again from its recipe (mergekit_config.yml), or restore the file; then verify"
VOCABULARY: Final = re.compile(r"^(tokenizer\.json|tokenizer\.model|vocab\.json|merges\.txt)$")
WEIGHTS: Final = (".safetensors", ".safetensors.index.json", ".gguf")
NOTHING: Final = 0.1
"""Largest share of a source's change in the result, and half the sum of all, below which it is the base, in effect."""
ARRIVED: Final = 0.9
"""Share of what the recipe means to add that has to arrive where rounding took some of it."""
MUCH_ROUNDED: Final = 0.25
"""Share of a change that rounding has to take where a method also leaves a part of it out: what arrives then tells of both."""
WHOLE: Final = 1.2
"""Share of a source's change in the result above which another source must have added the same."""
MAPPED: Final = frozenset(
    {
        "provenance", "digests", "sources_unchanged", "tokenizer", "chat_template", "settings", "end_of_turn", "finite",
        "not_empty", "recomputed", "loads",
    }
)  # fmt: skip
"""Checks of a verification that have a cause of their own here."""


def causes(known: Known) -> Iterator[Cause]:
    """In order of how much each explains."""
    yield from _readable(known)
    yield from _base(known)
    yield from _changed(known)
    yield from _values(known)
    yield from _structure(known)
    yield from _sources(known)
    yield from _scale(known)
    yield from _precision(known)


def failed(known: Known, name: str) -> str | None:
    """What a check that failed says."""
    check = known.checks.get(name)
    return check.detail if check is not None and check.passed is False else None


def _readable(known: Known) -> Iterator[Cause]:
    if detail := failed(known, "readable"):
        yield Cause(code="damaged_file", cause="the folder cannot be read as a model", evidence=detail, next=AGAIN)


def _base(known: Known) -> Iterator[Cause]:
    seen, base = known.observed, known.lineage.base or "the base"
    cosine = max((p.cosine for p in known.pairs if p.cosine is not None), default=None)
    long = seen.relative_norm is not None and seen.relative_norm >= threshold("long_delta")
    theirs = "set base_model to the model that the sources were trained from (their adapter_config.json or model card names it)"
    if seen.other_base or seen.doubtful_base:
        yield Cause(
            code="adapter_of_another_base",
            cause="an adapter was trained on another base than the one it was merged on, so its change is noise there",
            evidence=seen.other_base or seen.doubtful_base or "",
            next="merge each adapter on its own base; adapters of different bases cannot be merged (route, or distil)",
        )
    elif cosine is not None and cosine >= threshold("copies_of_another_base") and long:
        yield Cause(
            code="wrong_base",
            cause=f"{base} is not the sources' base: what their task vectors share is the way from it to their own base",
            evidence=f"cosine of the task vectors {cosine:.4f}, the shortest is {seen.relative_norm:.2g} of the base's length",
            next=f"{theirs}, then merge again with the same weights",
        )
    elif seen.unrelated:
        yield Cause(
            code="wrong_base",
            cause="the models were trained from different starts: no average or sum of them means anything",
            evidence=seen.unrelated,
            next=theirs,
        )
    elif cosine is not None and cosine >= threshold("near_copy") and _adds(known):
        total = sum(known.landed.values()) / len(known.landed) if known.landed else None
        yield Cause(
            code="copies_add_up",
            cause="two sources hold nearly the same change, and the recipe adds it twice",
            evidence=f"cosine of the task vectors {cosine:.3f}" + (f", {total:.2f} of each landed" if total is not None else ""),
            next="average them (render --set strategy=linear), or leave one out",
        )


def _adds(known: Known) -> bool:
    return any(share > WHOLE for share in known.landed.values())


def _changed(known: Known) -> Iterator[Cause]:
    swapped = [name for name in known.changed_files if VOCABULARY.match(name)]
    if swapped or known.tokens_moved:
        evidence = "; ".join(
            [*(f"{name} is not the file that the merge wrote" for name in swapped), *filter(None, [known.tokens_moved])]
        )
        yield Cause(
            code="tokenizer_swapped",
            cause="the tokenizer is not the one that the weights were made for: every token reads as another one",
            evidence=evidence,
            next="copy the tokenizer files of the base into the folder (or merge again), then verify and evaluate",
        )
    elif detail := failed(known, "tokenizer"):
        yield Cause(code="tokenizer_misfit", cause="tokenizer and weights do not fit", evidence=detail, next=AGAIN)
    template = [n for n in known.changed_files if n in ("tokenizer_config.json", "chat_template.jinja")]
    if detail := failed(known, "chat_template") or (f"{template[0]} is not the file that the merge wrote" if template else None):
        yield Cause(
            code="template_changed",
            cause="prompts are formatted otherwise than the sources were trained: the chat template was lost or changed",
            evidence=detail,
            next="copy tokenizer_config.json and chat_template.jinja of the base into the folder, then evaluate again",
        )
    odd = failed(known, "settings") or failed(known, "end_of_turn")
    named = {*swapped, *template} | {name for name in known.changed_files if name.endswith(WEIGHTS)}
    edited = [name for name in known.changed_files if name not in named]
    if odd or edited:
        yield Cause(
            code="config_changed",
            cause="a config was edited after the merge; the weights may be read, or answers ended, with other settings",
            evidence=odd or f"{edited[0]} is not the file that the merge wrote",
            next=AGAIN,
        )
    weights = [name for name in known.changed_files if name.endswith(WEIGHTS)]
    explained = known.observed.damaged or any(share > threshold("rounding_loss") for share in known.rounding_loss.values())
    explained = explained or any(failed(known, name) for name in ("finite", "not_empty"))
    differs = None if explained else failed(known, "recomputed")
    if not explained and not differs:
        differs = _tensors_changed(known)
    if weights or differs:
        yield Cause(
            code="weights_changed",
            cause="the weights are not what the recipe makes: changed since, or written by something else",
            evidence=differs or f"{weights[0]} is not the file that the merge wrote",
            next=AGAIN,
        )


def _tensors_changed(known: Known) -> str | None:
    """What the recorded digests say of tensors; files have causes of their own."""
    detail = failed(known, "digests") or ""
    names = detail.partition(": ")[2].partition(" and ")[0].split(", ")
    files = known.provenance.digests.files if known.provenance and known.provenance.digests else {}
    return detail if any(name and name not in files for name in names) else None


def _values(known: Known) -> Iterator[Cause]:
    if detail := failed(known, "finite"):
        yield Cause(
            code="not_finite",
            cause="weights are infinite or no numbers: a source diverged, or the sum left the dtype's range",
            evidence=detail,
            next="inspect the sources; merge with dtype float32 or a smaller lambda, without --allow-nonfinite",
        )
    if detail := failed(known, "not_empty"):
        yield Cause(code="empty_weights", cause="a weight matrix was never written", evidence=detail, next=AGAIN)


def _structure(known: Known) -> Iterator[Cause]:
    for name, check in known.checks.items():
        if check.passed is False and name not in MAPPED and name != "readable":
            yield Cause(
                code="structure_wrong",
                cause=f"the folder does not hold together: verification's check of {name} failed",
                evidence=check.detail,
                next=AGAIN,
            )
    if detail := failed(known, "loads"):
        yield Cause(code="does_not_load", cause="a loader refuses the model", evidence=detail, next=AGAIN)


def _sources(known: Known) -> Iterator[Cause]:
    if known.observed.damaged:
        yield Cause(
            code="broken_source",
            cause="a source holds nothing that could be merged",
            evidence=known.observed.damaged,
            next="train or save that source again and evaluate it alone before you merge",
        )
    check = known.checks.get("sources_unchanged")
    if check is not None and check.passed is not True:
        yield Cause(
            code="source_changed",
            cause="a source is not the one that went in: it was retrained or replaced after the merge",
            evidence=check.detail,
            next="merge again with the sources as they are now",
        )


def _scale(known: Known) -> Iterator[Cause]:
    """How much of each source went in: what landed, or λ times the weight where only the recipe is here."""
    tried = known.lineage.tried
    factor = tried.lambda_ if tried.lambda_ is not None else 1.0
    recipe = {name: factor * weight for name, weight in tried.weights.items()} if not tried.normalize else {}
    amounts = known.landed or recipe
    far = {name: amount for name, amount in amounts.items() if abs(amount) >= threshold("absurd_scale")}
    if far:
        shown = ", ".join(f"{name} {amount:.2f}" for name, amount in far.items())
        yield Cause(
            code="scale_absurd",
            cause="sources went in at many times the strength that they were trained to; the sum leaves where the model works",
            evidence=f"share of each delta in the result: {shown} (lambda {factor:g}, weights {_listed(tried.weights)})",
            next="render --set parameters.lambda=0.7 with every weight at 1, and sweep from there",
        )
    meant = sum(map(abs, recipe.values())) if recipe else None
    rounded = any(share > threshold("rounding_loss") for share in known.rounding_loss.values())
    sizes = [abs(share) for share in known.landed.values()]
    nothing = bool(sizes) and max(sizes) < NOTHING and sum(sizes) < 2 * NOTHING
    if nothing and (not rounded or (meant or NOTHING) < NOTHING):
        yield Cause(
            code="nothing_arrived",
            cause="hardly anything of the sources is in the result, which is the base in effect",
            evidence=", ".join(f"{name} {share:.3f} of its change" for name, share in known.landed.items())
            + f" (lambda {factor:g}, weights {_listed(tried.weights)})",
            next="render again with every weight at 1, lambda 0.7 to 1 and density 0.5 or more",
        )
    against = {name: min(amount, recipe.get(name, amount)) for name, amount in amounts.items()}
    against = {name: amount for name, amount in against.items() if amount < 0}
    if against:
        yield Cause(
            code="source_subtracted",
            cause="a source was taken away rather than added",
            evidence=", ".join(f"{name} {amount:.2f}" for name, amount in against.items()),
            next="if no skill was to be removed, make its weight positive",
        )


def _whole(landed: float | None, meant: float | None) -> bool:
    """Whether as much of a source arrived as the recipe means: what rounding took there, it gave elsewhere."""
    return landed is not None and meant is not None and abs(landed) >= ARRIVED * abs(meant)


def _listed(weights: dict[str, float]) -> str:
    return ", ".join(f"{name} {weight:g}" for name, weight in weights.items()) or "not stated"


def _precision(known: Known) -> Iterator[Cause]:
    tried = known.lineage.tried
    factor = tried.lambda_ if tried.lambda_ is not None else 1.0
    meant = {name: factor * weight for name, weight in tried.weights.items()} if not tried.normalize else {}
    signature = SIGNATURES.get(tried.method or "")
    limit = MUCH_ROUNDED if signature is not None and signature.sparsify != "none" else threshold("rounding_loss")
    lost = {
        name: share
        for name, share in known.rounding_loss.items()
        if share > limit and not _whole(known.landed.get(name), meant.get(name))
    }
    if lost:
        yield Cause(
            code="precision_lost",
            cause="much of what a source changed is smaller than the output's dtype can hold beside the base's weights",
            evidence=", ".join(f"{share:.0%} of {name}'s change was rounded away" for name, share in lost.items()),
            next="write float32 (render --set dtype=float32), or keep the adapters as one adapter (merge --output adapter)",
        )
