"""A search within minutes: propose candidates, look at each on few prompts first, and keep time for the winner's test.

A candidate begins with a few prompts. It gets more while its best case still reaches the leader's figure, up to the whole
measurement; the hopeless and the beaten end early. The first that is not hopeless is measured to the end whatever it takes. The
plan and the shortlist come first, for at most half of the time; then `Search` proposes. What is tried stands in
work/search.jsonl, so an interrupted search begins with the same candidates (their measurements answer from their files) and goes
on with the minutes that are left.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from mcp_server.errors import BadInput
from mcp_server.schemas.evidence import Evaluation, SweepCandidate
from mcp_server.schemas.plan import Plan
from mcp_server.steps.evaluate import Thresholds
from mcp_server.steps.sweep import Candidate, hopeless
from mcp_server.steps.sweep.candidates import candidate_of
from mcp_server.steps.sweep.choose import beaten, goals, in_words, ranked
from mcp_server.steps.sweep.cost import SweepCost
from mcp_server.steps.sweep.space import Point, Space
from mcp_server.workers.sweeping.bench import Bench, judged
from mcp_server.workers.sweeping.forecast import Forecast, times_slower
from mcp_server.workers.sweeping.progress import Progress
from mcp_server.workers.sweeping.search import Search
from mcp_server.workers.tasks.executors import Executor

LISTED_SHARE: Final = 0.5
"""Of the time for candidates, the most that the plan and the shortlist get."""
SHOWN: Final = 5
TIMES_UP: Final = "the minutes were over before it was asked more prompts"
REPEATS: Final = 25
"""Proposals in a row that round to a known recipe: the axes hold nothing new."""
Proposal = tuple[Candidate, Point | None, int | None]
"""A candidate, its point where it has one, and the number under which the search asked for it."""


class Budget:
    """One search. `started` is when the sweep began (`time.monotonic`), `sources_seconds` what base and sources took."""

    def __init__(
        self,
        bench: Bench,
        plan: Plan,
        near: Path,
        listed: Sequence[Candidate],
        cost: SweepCost | None,
        executor: Executor,
        progress: Progress,
        started: float,
        sources_seconds: float,
    ) -> None:
        self._bench, self._plan, self._near = bench, plan, near
        self._executor, self._progress = executor, progress
        self._looks = bench.looks()
        self._search = Search(Space(plan, listed), bench.request.seed)
        self._journal = Journal(bench.out / "work" / "search.jsonl", _key(bench, plan))
        if not self._journal.begun:
            self._journal.begin(sources_seconds, times_slower(cost, sources_seconds))
        self._forecast = Forecast(cost, self._looks, self._journal.sources_seconds, self._journal.slower)
        self._ends = started - self._journal.spent + 60 * (bench.request.minutes or 0.0)
        self._for_candidates = max(self._left(), 0.0)
        self._waiting = list(listed)
        self._whole: set[str] = set()
        self.tried: list[Candidate] = []
        self.found: dict[str, SweepCandidate] = {}

    def spend(self, limits: Thresholds) -> tuple[list[SweepCandidate], str]:
        """Every candidate that was tried, in order, and what is to say of the search."""
        before = [self._made(settings, point) for settings, point in self._journal.tried]
        self._try([proposal for proposal in before if proposal is not None], limits)
        resumed = len(self.tried)
        while batch := self._next():
            for candidate, point, _ in batch:
                self._journal.tries(candidate.settings, point)
            self._try(batch, limits)
            self._journal.note(self._spent())
        self._journal.note(60 * (self._bench.request.minutes or 0.0))
        return [self.found[candidate.name] for candidate in self.tried], self._told(resumed)

    def _next(self) -> list[Proposal]:
        """As many at once as there are workers; none when there is no time for a first look, but the very first always is."""
        known = {candidate.recipe for candidate in self.tried}
        self._waiting = [candidate for candidate in self._waiting if candidate.recipe not in known]
        width = max(1, self._executor.workers)
        if self.tried and self._left() < self._forecast.of(self._looks[0]):
            return []
        if self._waiting and (not self.tried or self._left() > (1 - LISTED_SHARE) * self._for_candidates):
            batch, self._waiting = self._waiting[:width], self._waiting[width:]
            return [(candidate, self._search.space.point_of(candidate), None) for candidate in batch]
        self._waiting = []
        found: list[Proposal] = []
        while len(found) < width and (one := self._proposed(known)) is not None:
            known.add(one[0].recipe)
            found.append(one)
        return found

    def _proposed(self, known: set[str]) -> Proposal | None:
        """The next point whose recipe was not tried; None where the search gives nothing new."""
        for _ in range(REPEATS):
            number, point = self._search.propose()
            made = self._made(self._search.space.settings_of(point), point)
            if made is not None and made[0].recipe not in known:
                return made[0], point, number
            self._search.tell(number, None)
        return None

    def _made(self, settings: dict[str, str], point: Point | None) -> Proposal | None:
        """None for a combination that the method refuses."""
        try:
            candidate = candidate_of(self._plan, settings, self._near)
        except BadInput:
            return None
        while candidate.name in self.found:
            candidate = candidate.model_copy(update={"name": f"{candidate.name}'"})
        return candidate, point, None

    def _try(self, batch: Sequence[Proposal], limits: Thresholds) -> None:
        self.tried += [candidate for candidate, _, _ in batch]
        self._race([candidate for candidate, _, _ in batch], limits)
        for candidate, point, number in batch:
            told = goals(self.found[candidate.name], limits)
            if number is not None:
                self._search.tell(number, told)
            elif told is not None and point is not None:
                self._search.know(point, told)

    def _race(self, batch: Sequence[Candidate], limits: Thresholds) -> None:
        """Look after look, each on more prompts, for those that may still win."""
        going = list(batch)
        for look, following in zip(self._looks, [*self._looks[1:], None], strict=True):
            by_name = {candidate.name: candidate for candidate in going}
            begin = time.monotonic()
            for name, answer in self._bench.run(self._executor, going, self._progress, look):
                one = judged(by_name[name], answer)
                if one.stopped is None and (reason := hopeless(Evaluation.model_validate(answer["result"]), limits)):
                    one = one.model_copy(update={"stopped": reason})
                if one.stopped is None and following is None:
                    self._whole.add(name)
                if one.stopped is None and following is not None and (reason := self._no_further(one, limits)):
                    one = one.model_copy(update={"stopped": reason})
                self.found[name] = one
                self._show(limits)
            if going:
                self._forecast.took(look, (time.monotonic() - begin) / len(going))
            for candidate in going:
                if self.found[candidate.name].stopped is not None:
                    self._bench.forget(candidate)
            going = [candidate for candidate in going if self.found[candidate.name].stopped is None]
            if following is not None and self._whole and self._left() < self._forecast.of(following) * len(going):
                for candidate in going:
                    self.found[candidate.name] = self.found[candidate.name].model_copy(update={"stopped": TIMES_UP})
                return

    def _no_further(self, one: SweepCandidate, limits: Thresholds) -> str | None:
        """Why it is not asked more prompts: even its best case does not reach the leader."""
        leaders = ranked([self.found[name] for name in self._whole], limits)
        return beaten(one, leaders[0], limits) if leaders else None

    def _show(self, limits: Thresholds) -> None:
        best = ranked(list(self.found.values()), limits)[:SHOWN]
        measured = f"{len(self.found)} tried, {len(self._whole)} to the end"
        self._progress.tell(
            "search", len(self.found), 0, measured, left=max(self._ends - time.monotonic(), 0.0),
            leaders=[in_words(one) for one in best],
        )  # fmt: skip

    def _told(self, resumed: int) -> str:
        spent, minutes = self._spent() / 60, self._bench.request.minutes or 0.0
        again = f", {resumed} of them before it was interrupted" if resumed else ""
        told = f"{len(self.tried)} candidates were tried{again}, {len(self._whole)} of them on all prompts"
        return f"{told}, within {min(spent, minutes):.1f} of {minutes:g} minutes"

    def _left(self) -> float:
        """Seconds for candidates: what the winner's test needs is kept."""
        return self._ends - time.monotonic() - self._forecast.test

    def _spent(self) -> float:
        return 60 * (self._bench.request.minutes or 0.0) - (self._ends - time.monotonic())


class Journal:
    """What a search has tried and how long it took, one JSON line each. A journal of another search is begun anew."""

    def __init__(self, file: Path, key: str) -> None:
        self._file, self._key = file, key
        self.begun = False
        self.sources_seconds = 0.0
        self.slower = 1.0
        self.spent = 0.0
        self.tried: list[tuple[dict[str, str], Point | None]] = []
        lines = _lines(file)
        if lines and lines[0].get("key") == key:
            self.begun, self.sources_seconds = True, float(lines[0]["sources_seconds"])
            self.slower = float(lines[0].get("slower", 1.0))
            self.tried = [(line["settings"], line["point"]) for line in lines if "settings" in line]
            self.spent = max((float(line["spent"]) for line in lines if "spent" in line), default=0.0)

    def begin(self, sources_seconds: float, slower: float) -> None:
        self.sources_seconds, self.slower = sources_seconds, slower
        first = {"key": self._key, "sources_seconds": round(sources_seconds, 2), "slower": round(slower, 3)}
        self._file.parent.mkdir(parents=True, exist_ok=True)
        self._file.write_text(_line(first), encoding="utf-8")

    def tries(self, settings: dict[str, str], point: Point | None) -> None:
        self._append({"settings": settings, "point": point})

    def note(self, spent: float) -> None:
        """Seconds of the budget that are gone."""
        self._append({"spent": round(spent, 2)})

    def _append(self, line: dict[str, Any]) -> None:
        with self._file.open("a", encoding="utf-8") as stream:
            stream.write(_line(line))


def _line(data: dict[str, Any]) -> str:
    return json.dumps(data, ensure_ascii=False) + "\n"


def _lines(file: Path) -> list[dict[str, Any]]:
    """Whole lines; one that a crash tore is passed over."""
    found = []
    for text in file.read_text(encoding="utf-8").splitlines() if file.is_file() else []:
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict):
            found.append(line)
    return found


def _key(bench: Bench, plan: Plan) -> str:
    """Everything that decides what is tried and measured; the minutes are not among it, so more of them go on."""
    request = bench.request.model_dump(
        mode="json", exclude={"minutes", "out", "plan", "workers", "ray", "cpus", "memory_gib", "gpus"}
    )
    text = json.dumps([request, plan.model_dump(mode="json")], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
