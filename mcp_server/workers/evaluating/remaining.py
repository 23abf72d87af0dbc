"""How long an evaluation still takes, by what its answers took so far."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping


class Remaining:
    """Every model answers every suite; a suite weighs what its prompts are expected to take.

    What was remembered took no time, so it is left out of both sides: only answers that were computed tell a speed.
    """

    def __init__(self, weights: Mapping[str, float], labels: Iterable[str]) -> None:
        self._left = {(label, suite): weight for label in labels for suite, weight in weights.items()}
        self._spent = 0.0
        self._worked = 0.0
        self._since = time.monotonic()

    def begin(self) -> None:
        """A suite begins."""
        self._since = time.monotonic()

    def end(self, label: str, suite: str, computed: bool) -> None:
        weight = self._left.pop((label, suite), 0.0)
        if computed:
            self._worked += weight
            self._spent += time.monotonic() - self._since

    def seconds(self, label: str, suite: str, done: int, total: int) -> float | None:
        """From here to the end of the evaluation; None before anything was computed."""
        weight = self._left.get((label, suite), 0.0)
        part = weight * done / total if total else 0.0
        worked, spent = self._worked + part, self._spent + time.monotonic() - self._since
        return (sum(self._left.values()) - part) * spent / worked if worked > 0 and spent > 0 else None
