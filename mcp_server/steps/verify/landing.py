"""Is every tensor what the recipe makes of the sources, and how far did each source's delta arrive?

The tensors are computed again (`recompute`) and compared. For a source with delta δ over the base b, and the merge m:
landed = Σ(m − b)·δ ÷ Σδ²: 1 is all of it, 0 none; another source's delta counts in so far as it points the same way.
`rounding_loss` is the share of Σδ² at elements where the output has the base's value although the recipe moves them (additive
methods only; elsewhere only the engine knows what was meant to move).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from statistics import median
from typing import Final

from mcp_server.recompute.adapters import CannotCompute
from mcp_server.recompute.compare import Tally
from mcp_server.recompute.merge import Merge
from mcp_server.recompute.pass_over import ADDITIVE, Likeness, Recomputed, recompute
from mcp_server.recompute.reading import MANTISSA, is_float
from mcp_server.schemas.evidence import Check
from mcp_server.steps.verify.foreign import statistics, without_recipe
from mcp_server.steps.verify.origin import changed_sources

SHOWN: Final = 12
ALIKE: Final = 0.98
FAR: Final = 0.1
"""Two task vectors this alike, and this long beside the base, speak for another base than the sources' own."""
SLOPE: Final = 0.9
"""What training adds is nearly orthogonal to the weights that it starts from, so that the slope of a model's weights on its
base's is 1 (0.998 to 1.009 measured, for changes of 0.18 and 0.72 of the base's length). A base that differs from the true one by
noise of ν times its spread lowers the slope of all sources to 1 ÷ (1 + ν²): below this for ν above a third."""
SHARE: Final = 0.05
"""A recipe that leaves less of the base than this in the result (weights that sum to 1) does not depend on which base it is."""
EXACT_ADAPTER: Final = 1e-3
RANDOM: Final = frozenset({"dare_linear", "dare_ties", "della", "della_linear"})


@dataclass
class Landing:
    landed: dict[str, float | None] = field(default_factory=dict)
    rounding_loss: dict[str, float | None] = field(default_factory=dict)
    checks: list[Check] = field(default_factory=list)


def measure(merge: Merge, *, full: bool, most: int | None = None) -> Landing:
    """The checks `tensors`, `recomputed` and `base`, and the landing per source. `most`: see `recompute`."""
    record = merge.provenance
    found = Landing(dict(record.landed), dict(record.rounding_loss)) if record else Landing()
    if merge.recipe is None:
        found.checks += without_recipe(merge, full=full)
        return found
    if merge.recipe.kind != "merge" or merge.recipe.in_parts:
        what = "mixtures of experts" if merge.recipe.kind == "moe" else "recipes of several stages or modules"
        found.checks.append(Check(name="recomputed", passed=None, detail=f"{what} are not computed again here"))
        return found
    if merge.missing or (merge.is_adapter and merge.base is None):
        found.checks.append(_not_here(merge))
        return found
    if merge.is_adapter and merge.adapter is None:
        found.checks.append(Check(name="recomputed", passed=None, detail="the adapter could not be read"))
        return found
    try:
        again = recompute(merge, full=full, most=most)
    except CannotCompute as reason:
        found.checks.append(Check(name="recomputed", passed=None, detail=str(reason)))
        return found
    found.checks += [*_names(merge, again), _values(merge, again, full=full), *_base(merge, again)]
    _shares(merge, again, found)
    return found


def _not_here(merge: Merge) -> Check:
    """Without the sources only the record can speak: the digests that were made while it was written."""
    reason = "; ".join(f"{name}: {why}" for name, why in merge.missing.items())
    held = merge.provenance is not None and merge.provenance.digests is not None
    what = "the sources are not all here, so the recorded digests stand for them" if held else "cannot be computed again"
    return Check(name="recomputed", passed=True if held else None, detail=f"{what}; {reason}")


def _names(merge: Merge, again: Recomputed) -> list[Check]:
    if merge.is_adapter:
        return []
    if again.absent:
        detail = f"{len(again.absent)} tensors of the base are missing, such as {again.absent[0]}"
        return [Check(name="tensors", passed=False, detail=detail)]
    if again.strange:
        detail = f"{len(again.strange)} tensors are in no source, such as {again.strange[0]}"
        return [Check(name="tensors", passed=False, detail=detail)]
    return [Check(name="tensors", passed=True, detail=f"all {len(merge.tensors)} tensors that the recipe makes")]


def _values(merge: Merge, again: Recomputed, *, full: bool) -> Check:
    depth = "every value" if full else "a sample of each"
    method = merge.recipe.method if merge.recipe else None
    by_svd = merge.provenance is not None and merge.provenance.relative_error is not None
    if merge.is_adapter and (by_svd or method not in ADDITIVE):
        return _approximated(merge, again)
    unknown = dict(again.unknown)
    said = ""
    if method in RANDOM and not merge.ours:
        outcome = statistics(merge, list(unknown), again, full=full)
        again.wrong |= outcome.wrong
        for name in outcome.fitting:
            unknown.pop(name)
        said = f"; {len(outcome.fitting)} tensors by statistics, as no seed is recorded" if outcome.fitting else ""
        for name in outcome.wrong:
            unknown.pop(name, None)
    count = again.compared + (len(again.unknown) - len(unknown))
    if again.wrong:
        return _wrong(merge, again, count)
    if unknown:
        reasons = Counter(unknown.values()).most_common(2)
        shown = "; ".join(f"{number} × {why}" for why, number in reasons)
        first = next(iter(unknown))
        detail = f"{count} tensors are as the recipe makes them ({depth}); {len(unknown)} are unknown, such as {first}: {shown}"
        return Check(name="recomputed", passed=None, detail=detail)
    if not count:
        return Check(name="recomputed", passed=None, detail="no tensor could be computed again")
    skipped = f"; {again.skipped} others only with --full" if again.skipped else ""
    detail = f"{count} tensors computed again from the sources ({depth}): as the recipe makes them{said}{skipped}"
    return Check(name="recomputed", passed=True, detail=detail)


def _wrong(merge: Merge, again: Recomputed, count: int) -> Check:
    shown = [f"{name} {again.words(name)}" for name in list(again.wrong)[:SHOWN]]
    more = f"; and {len(again.wrong) - SHOWN} more" if len(again.wrong) > SHOWN else ""
    why = ""
    spoiled = sum(again.untouched)
    if len(again.untouched) > 1 and spoiled > len(again.untouched) / 2:
        label = merge.base.label if merge.base else "the base"
        why = f"wrong base: {spoiled} of {len(again.untouched)} tensors that no source changes are not those of {label}. "
    elif len(again.wrong) > 3 and len(again.wrong) > 0.8 * count:
        why = "nearly every tensor differs: a wrong base, other sources, or another recipe. "
    elif merge.assumed and (factor := _common_scale(again)) is not None:
        detail = f"every adapted tensor holds {factor:.2f} times the adapter's change; say with --recipe whether that was meant"
        return Check(name="recomputed", passed=None, detail=detail)
    changed = changed_sources(merge, touched=True)
    since = f"{', '.join(changed)} changed since the merge, so this decides nothing: " if changed else ""
    detail = f"{since}{why}{len(again.wrong)} of {count} tensors are not what the recipe makes: {'; '.join(shown)}{more}"
    return Check(name="recomputed", passed=None if changed else False, detail=detail)


def _common_scale(again: Recomputed) -> float | None:
    """One factor on the adapter's change throughout, where everything else is right."""
    tallies = [tally for tally in again.wrong.values() if isinstance(tally, Tally) and tally.sums["cc"]]
    touched = again.compared - len(again.untouched)
    if len(tallies) != len(again.wrong) or len(tallies) < max(2, touched):
        return None
    factors = [tally.sums["mc"] / tally.sums["cc"] for tally in tallies]
    whole = all("wrong scale" in tally.said for tally in tallies)
    return factors[0] if whole and max(factors) - min(factors) < 0.02 * abs(factors[0]) else None


def _approximated(merge: Merge, again: Recomputed) -> Check:
    """A method that does not keep updates low-rank: the adapter is the best of its rank, and its error was recorded."""
    recorded = merge.provenance.relative_error if merge.provenance else None
    if again.error is None or again.unknown:
        reason = next(iter(again.unknown.values()), "nothing could be compared")
        return Check(name="recomputed", passed=None, detail=reason)
    if recorded is None:
        detail = f"the adapter is {again.error:.3f} off what the recipe makes (Frobenius norm); no error is recorded"
        return Check(name="recomputed", passed=True if again.error < EXACT_ADAPTER else None, detail=detail)
    coarsest = min((MANTISSA[t.dtype] for t in merge.tensors.values() if is_float(t.dtype)), default=23)
    rounding = 2.0 ** -(coarsest + 1)  # of the stored factors, which the recorded error does not count
    passed = again.error <= 1.05 * recorded + EXACT_ADAPTER + rounding
    detail = f"the adapter is {again.error:.3f} off what the recipe makes, {recorded:.3f} was recorded (Frobenius norm)"
    return Check(name="recomputed", passed=passed, detail=detail)


def _base(merge: Merge, again: Recomputed) -> list[Check]:
    """Sources that all leave the base in one direction, or share less with it than with each other, come from another one.

    Not told: a base that is close to the true one (a fine-tune of it), and adapters, whose change says nothing of the weights.
    """
    likeness = again.likeness
    if merge.base is None or not likeness.between or not likeness.base or (likeness.share or 0.0) < SHARE:
        return []
    cosines = {pair: s[0] / (s[1] * s[2]) ** 0.5 for pair, s in likeness.between.items() if s[1] and s[2]}
    lengths = [(s[1] / likeness.base) ** 0.5 for s in likeness.between.values()]
    if not cosines or min(lengths) < FAR:
        return []
    (one, other), cosine = min(cosines.items(), key=lambda item: item[1])
    slopes = {label: median(found) for label, found in likeness.slopes.items()}
    if cosine >= ALIKE:
        seen = f"the task vectors of {one} and {other} point the same way (cosine {cosine:.3f})"
    elif len(slopes) > 1 and max(slopes.values()) < SLOPE and _nearer_to_each_other(likeness, slopes):
        shown = ", ".join(f"{label} {slope:.2f}" for label, slope in slopes.items())
        seen = (
            f"the sources hold only a part of the base's weights (slope on the base: {shown}; 1 when trained from it), share more"
        )
        seen += f" with each other (cosine of the task vectors {cosine:.2f})"
    else:
        return []
    detail = (
        f"{seen} and are {min(lengths):.2f} times as long as the base: "
        f"{merge.base.label} may be the wrong base, not the one that the sources were trained from"
    )
    return [Check(name="base", passed=None, detail=detail)]


def _nearer_to_each_other(likeness: Likeness, slopes: dict[str, float]) -> bool:
    """Whether ⟨source, source⟩ is at least nearly ⟨source, base⟩: then their common ancestor is not the base.

    Weights that merely shrank (decay over a long training) share less with each other than with the base that shrank.
    """
    mean = sum(slopes.values()) / len(slopes)
    shared = [2 * mean - 1 + sums[0] / likeness.base for sums in likeness.between.values()]
    return min(shared) >= 0.9 * mean


def _shares(merge: Merge, again: Recomputed, found: Landing) -> None:
    recorded = dict(found.rounding_loss)
    if merge.recipe is None or merge.recipe.sliced or merge.recipe.method == "passthrough":
        return
    for name, total in again.landed.items():
        if not total.energy:
            found.landed.setdefault(name, None)
            continue
        found.landed[name] = total.along / total.energy
        additive = merge.recipe.method in ADDITIVE
        known = recorded.get(name)
        found.rounding_loss[name] = known if known is not None else total.undone / total.energy if additive else None
