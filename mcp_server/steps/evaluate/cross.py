"""Each source on every other source's prompts: how often it breaks into its own behaviour where it should not.

Measured on the running example, weight statistics said "no conflict" (cosine 0.005) while the tools adapter answered 93 % of the
persona's prompts in JSON; every merge of the two lost a skill. A source that leaks alone leaks inside a merge, and nothing about
its weights shows it. The rate in a source's *own* context is reported too: it should be high, or the detector is blind.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from pydantic import Field

from mcp_server.schemas.base import Frozen
from mcp_server.schemas.evidence import Interval

Detector = Callable[[str], bool]


class CrossContext(Frozen):
    """`rates[source][context]`: share of the replies in that context that show the source's own behaviour."""

    rates: dict[str, dict[str, float]]
    intervals: dict[str, dict[str, Interval]]
    prompts: dict[str, int] = Field(description="context → number of prompts")
    own: dict[str, str] = Field(description="source → the context that is its own")


def cross_context(
    replies: Mapping[str, Mapping[str, Sequence[str]]], own: Mapping[str, str], behaviours: Mapping[str, Detector]
) -> CrossContext:
    """Rates and 95 % Wilson intervals.

    replies      source → context (suite) → replies in it
    own          source → the context it was trained for
    behaviours   context → detector of the behaviour that is right there
    Sources without an own context, or whose context has no detector, are left out.
    """
    rates: dict[str, dict[str, float]] = {}
    intervals: dict[str, dict[str, Interval]] = {}
    counts: dict[str, int] = {}
    for source, context in own.items():
        if (detect := behaviours.get(context)) is None or source not in replies:
            continue
        rates[source], intervals[source] = {}, {}
        for where, texts in replies[source].items():
            if not texts:
                continue
            hits = sum(bool(detect(text)) for text in texts)
            rates[source][where] = hits / len(texts)
            intervals[source][where] = wilson(hits, len(texts))
            counts[where] = len(texts)
    return CrossContext(rates=rates, intervals=intervals, prompts=counts, own={s: c for s, c in own.items() if s in rates})


def wilson(hits: int, count: int, z: float = 1.959964) -> Interval:
    """95 % interval of a proportion; unlike the normal one it is honest at 0 and 1 (Wilson 1927)."""
    if count <= 0:
        raise ValueError("a proportion of no samples has no interval")
    share = hits / count
    centre = share + z * z / (2 * count)
    spread = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    divisor = 1 + z * z / count
    return Interval(low=max(0.0, (centre - spread) / divisor), high=min(1.0, (centre + spread) / divisor))


def leaks(cross: CrossContext, above: float) -> list[tuple[str, str, float]]:
    """(source, foreign context, rate) for every rate above the threshold, worst first."""
    found = [
        (source, context, rate)
        for source, row in cross.rates.items()
        for context, rate in row.items()
        if context != cross.own[source] and rate > above
    ]
    return sorted(found, key=lambda item: -item[2])
