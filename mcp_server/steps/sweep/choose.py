"""Which candidates to stop early, which stand on the Pareto front, and which one wins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from mcp_server.schemas.evidence import Evaluation, SweepCandidate
from mcp_server.steps.evaluate import Thresholds
from mcp_server.steps.evaluate.verdict import with_width
from mcp_server.steps.sweep.plateau import fewest_prompts, middle, others_alike

FAILED: Final = "failed: "
"""What `stopped` begins with where a candidate could not be merged or measured."""


def hopeless(quick: Evaluation, limits: Thresholds) -> str | None:
    """Why a candidate need not be measured to the end; null when it may still win.

    A capability whose interval of the gain lies wholly below the failing line, or a perplexity beyond failing, on the quick look.
    """
    if quick.perplexity_ratio is not None and quick.perplexity_ratio > limits.perplexity_failed:
        return f"perplexity {quick.perplexity_ratio:.2f} times the best source's on a quick look"
    for name, capability in quick.capabilities.items():
        gain, span = capability.gain_recovered, capability.ci.get("gain_recovered")
        if gain is None or span is None:
            continue
        most = with_width(gain, span, capability.n).high
        if most < limits.retention_failed:
            return f"{name} recovers {gain:.0%} (at most {most:.0%}) of its gain on a quick look"
    return None


def objectives(candidate: SweepCandidate) -> dict[str, float] | None:
    """What is compared, more being better: the gain of every capability and the inverse perplexity ratio; null if incomplete."""
    if candidate.stopped is not None:
        return None
    found = {name: gain for name, gain in candidate.gains.items() if gain is not None}
    if candidate.perplexity_ratio:
        found["1/perplexity"] = 1.0 / candidate.perplexity_ratio
    return found or None


def pareto_front(candidates: Sequence[SweepCandidate]) -> set[str]:
    """Names of candidates that no other one equals or beats everywhere and beats somewhere."""
    known = {candidate.name: found for candidate in candidates if (found := objectives(candidate)) is not None}
    return {name for name, mine in known.items() if not any(_beats(other, mine) for n, other in known.items() if n != name)}


def _beats(one: Mapping[str, float], other: Mapping[str, float]) -> bool:
    shared = set(one) & set(other)
    return all(one[key] >= other[key] for key in shared) and any(one[key] > other[key] for key in shared)


def choose(candidates: Sequence[SweepCandidate], limits: Thresholds) -> tuple[str | None, str]:
    """(winner, why). First come candidates that meet every target; among those, and else among all, the one whose worst
    objective is best, counted against its target; then the lowest perplexity. Where neighbours cannot be told apart from it,
    the middle of them (`plateau`).
    """
    known = [(candidate, found) for candidate in candidates if (found := objectives(candidate)) is not None]
    if not known:
        return None, _nothing(candidates)
    meets = [candidate for candidate, _ in known if _meets(candidate, limits)]
    pool = meets or [candidate for candidate, _ in known]
    first = max(pool, key=lambda candidate: (_worst(candidate, limits), -(candidate.perplexity_ratio or 1.0)))
    ratio = max(first.perplexity_ratio or 1.0, limits.perplexity_adjust)
    best, plateau = middle(first, [one for one in pool if (one.perplexity_ratio or 1.0) <= ratio], candidates)
    figures = ", ".join(f"{name} {gain:.0%}" for name, gain in best.gains.items() if gain is not None)
    perplexity = f", perplexity {best.perplexity_ratio:.2f} times the best source's" if best.perplexity_ratio else ""
    reason = f"{len(meets)} of {len(known)} candidates meet every target" if meets else "no candidate meets every target"
    chosen = f"{plateau}: gain recovered" if plateau else "its least kept objective is the best of them: gain recovered"
    also = "" if plateau else others_alike(best, pool)
    return best.name, f"{reason}; {chosen} {figures}{perplexity}{also}"


def _nothing(candidates: Sequence[SweepCandidate]) -> str:
    """Why nothing won; where candidates failed, in their own words, so that nobody takes a fault for a bad merge."""
    failed = [candidate for candidate in candidates if (candidate.stopped or "").startswith(FAILED)]
    said = f"; {len(failed)} of {len(candidates)} {failed[0].stopped}" if failed else ""
    return f"no candidate was measured to the end{said}"


def goals(candidate: SweepCandidate, limits: Thresholds) -> tuple[float, float] | None:
    """What a search raises: (the worst objective, the mean of the skills' gains), as shares of their targets; None where it was
    not measured. A candidate that was stopped early stands where its few prompts put it.

    The mean leads where the worst is nothing, which it is in most places where skills are in each other's way. Perplexity counts
    by what it lacks of its target and is no goal of its own: a merge of hardly anything has the best.
    """
    gains = [min(gain, 1.0) / limits.gain_recovered_target for gain in candidate.gains.values() if gain is not None]
    if not gains and candidate.perplexity_ratio is None:
        return None
    worst = _worst(candidate, limits)
    return worst, sum(gains) / len(gains) if gains else worst


def ranked(candidates: Sequence[SweepCandidate], limits: Thresholds) -> list[SweepCandidate]:
    """Best first by the worst objective; those that were stopped stand behind the others, those that failed are left out."""
    known = [candidate for candidate in candidates if goals(candidate, limits) is not None]
    return sorted(known, key=lambda c: (c.stopped is not None, -_worst(c, limits), c.perplexity_ratio or 1.0))


def beaten(candidate: SweepCandidate, leader: SweepCandidate, limits: Thresholds) -> str | None:
    """Why few prompts are enough to see that it does not win: a skill's best case stays below the leader's worst figure."""
    mark = _worst(leader, limits)
    for name, gain in candidate.gains.items():
        if gain is None or (span := candidate.intervals.get(name)) is None:
            continue
        most = with_width(gain, span, candidate.prompts.get(name)).high
        if min(most, 1.0) / limits.gain_recovered_target < mark:
            few = f"on {candidate.prompts[name]} prompts" if name in candidate.prompts else "on few prompts"
            return f"{name} recovers {gain:.0%} of its gain {few}, at most {most:.0%}; the leader keeps more of all"
    return None


def in_words(candidate: SweepCandidate) -> str:
    """ "ties lambda=0.7: persona 84 %, tools 71 %, perplexity 1.12 times, 20 prompts": a line of a table of leaders."""
    figures = [f"{name} {gain:.0%}" for name, gain in candidate.gains.items() if gain is not None]
    if candidate.perplexity_ratio:
        figures.append(f"perplexity {candidate.perplexity_ratio:.2f} times")
    prompts = fewest_prompts(candidate)
    ended = " (ended early)" if candidate.stopped is not None else ""
    return f"{candidate.name}: {', '.join(figures) or 'nothing measured'}, {prompts} prompts{ended}"


def _meets(candidate: SweepCandidate, limits: Thresholds) -> bool:
    gains = [gain for gain in candidate.gains.values() if gain is not None]
    ratio = candidate.perplexity_ratio or 1.0
    return bool(gains) and min(gains) >= limits.gain_recovered_target and ratio <= limits.perplexity_adjust


def _worst(candidate: SweepCandidate, limits: Thresholds) -> float:
    """The least of all objectives, each as a share of its target, none counted beyond 100 % of a perfect score."""
    shares = [min(gain, 1.0) / limits.gain_recovered_target for gain in candidate.gains.values() if gain is not None]
    if candidate.perplexity_ratio:
        shares.append(limits.perplexity_adjust / max(candidate.perplexity_ratio, 1.0))
    return min(shares, default=0.0)
