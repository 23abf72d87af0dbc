"""What the rest of a sweep takes: the estimate from before it began, corrected by what base, sources and every look took."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Final

from mcp_server.steps.sweep.cost import SweepCost
from mcp_server.workers.sweeping.bench import Look

RECENT: Final = 8
TEST_PER_SOURCES: Final = 1.5
"""Where nothing could be estimated: the winner's test asks base and sources again on the other split, and the merge."""


def times_slower(cost: SweepCost | None, sources_seconds: float) -> float:
    """What base and sources took, by what was estimated; 1 where most of that was the start, because their answers were known."""
    if cost is None or cost.answering < cost.sources / 2:
        return 1.0
    return min(max(sources_seconds / cost.sources, 0.1), 10.0)


class Forecast:
    """Seconds. `sources_seconds`: what base and sources took; `slower`: what the estimate is multiplied by."""

    def __init__(self, cost: SweepCost | None, looks: Sequence[Look], sources_seconds: float, slower: float) -> None:
        self._cost, self._looks = cost, looks
        self._slower = slower
        self._taken: dict[str, list[float]] = defaultdict(list)
        self.test = cost.test * self._slower if cost is not None else TEST_PER_SOURCES * sources_seconds
        """For the winner's merge and its measurement on the test split."""

    def took(self, look: Look, seconds: float) -> None:
        self._taken[look.name] = [*self._taken[look.name], seconds][-RECENT:]

    def of(self, look: Look) -> float:
        """One candidate's look."""
        if known := self._taken[look.name]:
            return sum(known) / len(known)
        if self._cost is None:
            return 0.0
        return (self._cost.whole if look == self._looks[-1] else self._cost.first) * self._slower
