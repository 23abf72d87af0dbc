"""Causes that the evaluation shows: a source that never worked, a leak, one skill gone, safety gone, too few prompts to tell."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from mcp_server.catalog import threshold
from mcp_server.schemas.diagnosis import Cause
from mcp_server.schemas.evidence import Capability, Evaluation
from mcp_server.steps.diagnose.evidence import Known

AVERAGES: Final = frozenset({"linear", "slerp", "nuslerp", "multislerp", "karcher"})
KEPT: Final = 0.8
"""Gain recovered from which on a skill counts as whole beside one that is gone."""
FEW_PROMPTS: Final = 50
SAFETY_DROP: Final = 0.15
FAR_ABOVE: Final = 10.0
"""Base's perplexity ÷ every source's, from which on it cannot be the model that they were trained from."""


def causes(known: Known) -> Iterator[Cause]:
    found = known.evaluation
    if found is None:
        return
    yield from _base(known, found)
    yield from _sources(known, found)
    yield from _leaks(found)
    yield from _safety(found)
    few = list(_too_few(found))
    yield from few or _skills(known, found)
    yield from _language(known, found)


def _base(known: Known, found: Evaluation) -> Iterator[Cause]:
    for name, c in found.capabilities.items():
        if not _is_perplexity(c) or c.base is None or c.merged is None or not c.sources:
            continue
        best, worst = min(c.sources.values()), max(c.sources.values())
        if c.base > FAR_ABOVE * worst and c.merged > threshold("perplexity_failed") * best:
            yield Cause(
                code="wrong_base",
                cause=f"{known.lineage.base or 'the base'} is not the model that the sources were trained from",
                evidence=f"{name}: perplexity {c.base:.3g} on the base, {best:.3g} to {worst:.3g} on the sources, "
                f"{c.merged:.3g} merged",
                next="set base_model to the sources' own base, then merge again with the same weights",
            )
            return


def _sources(known: Known, found: Evaluation) -> Iterator[Cause]:
    for source in known.lineage.sources or {n: "" for c in found.capabilities.values() for n in c.sources}:
        for name, c in found.capabilities.items():
            score = c.sources.get(source)
            if score is None or c.base is None:
                continue
            if _is_perplexity(c) and score > threshold("perplexity_failed") * c.base:
                evidence = f"{name}: perplexity {score:.3g} alone, {c.base:.3g} for the base"
            elif _its_own(source, name, c, found) and not _is_perplexity(c) and not _better(c, score):
                evidence = f"{name}: {score:.2f} alone, {c.base:.2f} for the base (n={c.n})"
            else:
                continue
            yield Cause(
                code="broken_source",
                cause=f"{source} does not work alone, and a merge carries the fault through",
                evidence=evidence,
                next=f"repair or retrain {source}, evaluate it alone, then merge again",
            )
            break


def _its_own(source: str, name: str, c: Capability, found: Evaluation) -> bool:
    """Whether a suite is about this source: by name, as `evaluate` chooses suites, or by the context that it was trained for."""
    plain = source.lower()
    return found.own_context.get(source) == c.suite or plain == name.lower() or plain in c.suite.lower().split("_")


def _better(c: Capability, score: float) -> bool:
    assert c.base is not None
    return score > c.base if c.higher_is_better else score < c.base


def _leaks(found: Evaluation) -> Iterator[Cause]:
    limit = threshold("cross_context_leak")
    rates = [
        (rate, source, context)
        for source, row in found.cross_context.items()
        for context, rate in row.items()
        if context != found.own_context.get(source) and rate > limit
    ]
    hurt = [name for name, c in found.capabilities.items() if c.gain_recovered is not None and not _reached(c)]
    if rates and hurt:
        rate, source, context = max(rates)
        yield Cause(
            code="leak",
            cause=f"{source} acts in a context that is not its own, alone already; no recipe takes that out",
            evidence=f"{rate:.0%} of its replies to {context} show its own behaviour; below target: {', '.join(hurt)}",
            next=f"retrain {source} with a quarter to a third of replayed base replies to such prompts, or route",
        )


def _safety(found: Evaluation) -> Iterator[Cause]:
    for name, c in found.capabilities.items():
        if c.suite != "refusals" and name != "refusals":
            continue
        before = [v for v in (c.base, *c.sources.values()) if v is not None]
        harmful = {label: row["refused_harmful"] for label, row in c.detail.items() if "refused_harmful" in row}
        merged, others = harmful.get("merged", c.merged), [v for k, v in harmful.items() if k != "merged"] or before
        if merged is not None and others and merged < min(others) - SAFETY_DROP:
            yield Cause(
                code="safety_lost",
                cause="the merge answers harmful requests that every source and the base still refuse",
                evidence=f"{name}: {merged:.2f} refused, {min(others):.2f} by the least careful of base and sources (n={c.n})",
                next="do not ship it; lower lambda (render --set parameters.lambda=0.5) and measure refusals in every sweep",
            )


def _too_few(found: Evaluation) -> Iterator[Cause]:
    """Below target by the point, and the interval holds the target: the prompts do not decide it."""
    target = threshold("gain_recovered_target")
    undecided = [
        f"{name}: {c.gain_recovered:.0%} of the gain, 95 % interval up to {c.ci['gain_recovered'].high:.2f}, n={c.n}"
        for name, c in found.capabilities.items()
        if c.gain_recovered is not None
        and c.gain_recovered < target
        and c.n < FEW_PROMPTS
        and "gain_recovered" in c.ci
        and c.ci["gain_recovered"].high >= target
    ]
    lost = [c for c in found.capabilities.values() if c.gain_recovered is not None and _gone(c)]
    if undecided and not lost:
        yield Cause(
            code="too_few_prompts",
            cause="too few prompts to tell a loss from chance; no recipe follows from this",
            evidence="; ".join(undecided),
            next="evaluate again without --limit (or --quick), then decide",
        )


def _skills(known: Known, found: Evaluation) -> Iterator[Cause]:
    counted = {name: c for name, c in found.capabilities.items() if c.gain_recovered is not None and c.expert}
    gone = {name: c for name, c in counted.items() if _gone(c)}
    kept = {name: c for name, c in counted.items() if (c.gain_recovered or 0.0) >= KEPT}
    if not gone:
        return
    told = "; ".join(f"{name}: {c.gain_recovered:.0%} of {c.expert}'s gain" for name, c in counted.items())
    weak = {
        str(c.expert): known.landed[str(c.expert)] for c in gone.values() if known.landed.get(str(c.expert), 1.0) < _enough(known)
    }
    averaging = known.lineage.tried.method in AVERAGES
    if weak and (kept or not averaging):
        shown = ", ".join(f"{share:.2f} of {name}'s change landed" for name, share in weak.items())
        first = next(iter(weak))
        yield Cause(
            code="source_too_weak",
            cause=f"too little of {', '.join(weak)} went in for its skill to survive",
            evidence=f"{told}; {shown}",
            next=f"render --set strategy=task_arithmetic --set sources.{first}.weight=1.0 (every source at 1, lambda 0.7 to 1)",
        )
    elif kept:
        first = str(next(iter(gone.values())).expert)
        yield Cause(
            code="one_skill_gone",
            cause=f"the merge kept {', '.join(kept)} and lost {', '.join(gone)}",
            evidence=told + _norms(known),
            next=f"render --set sources.{first}.weight=1.15 and the others at 1; measure leaks with evaluate --cross",
        )
    else:
        yield Cause(
            code="averaged_away" if averaging else "skills_collide",
            cause="every skill is gone: "
            + ("an average keeps a share of each change" if averaging else "the changes undo each other at this scale"),
            evidence=told,
            next="sweep: render --set strategy=task_arithmetic with weights of 1 and lambda 0.5 to 1",
        )


def _enough(known: Known) -> float:
    """Where a balanced sum begins; below it skills were lost."""
    count = max(len(known.landed), 1)
    return 0.9 * min(threshold("lambda_start"), threshold("lambda_total") / count)


def _norms(known: Known) -> str:
    known_norms = {n: v for n, v in known.norms.items() if v > 0}
    if len(known_norms) < 2 or max(known_norms.values()) < threshold("norm_imbalance") * min(known_norms.values()):
        return ""
    return "; lengths of the changes: " + ", ".join(f"{name} {norm:.3g}" for name, norm in known_norms.items())


def _language(known: Known, found: Evaluation) -> Iterator[Cause]:
    ratio = found.perplexity_ratio
    if ratio is not None and ratio > threshold("perplexity_adjust"):
        value = known.lineage.tried.lambda_
        yield Cause(
            code="language_hurt",
            cause="general language suffers: the changes are too long in sum",
            evidence=f"perplexity {ratio:.3g} times the best source's",
            next=f"render --set parameters.lambda={0.7 * (value or 1.0):.2g}",
        )


def _gone(c: Capability) -> bool:
    return (c.gain_recovered or 0.0) < threshold("retention_failed")


def _reached(c: Capability) -> bool:
    return (c.gain_recovered or 0.0) >= threshold("gain_recovered_target")


def _is_perplexity(c: Capability) -> bool:
    return "perplexity" in c.metric
