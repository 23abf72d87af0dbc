"""Candidates that cannot be told apart from the best one, and the one in their middle.

The best figure of many is partly luck, and luck falls on the edge of a plateau as often as on its middle, where a little more or
less of a setting ruins nothing. So where enough neighbours of the best cannot be told apart from it, the middle of them is taken:
along any number of settings at once, as a search leaves them, or along one, as a grid does.

A candidate's place is what its recipe sets: numbers of the method and of each source, a gradient by both its ends. Only
candidates whose recipes differ in such numbers alone are neighbours.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mcp_server.errors import MergingError
from mcp_server.formats.recipe import Recipe, as_number, read_recipe
from mcp_server.schemas.evidence import SweepCandidate

FEWEST: Final = 3
"""Candidates of a plateau along one setting; of two there is no middle. Every further setting needs one more."""
Ends = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a candidate stands. `fixed`: everything about its recipe that is no number; `at`: setting → value at both ends."""

    fixed: str
    at: Mapping[str, Ends]

    def within(self, one: Place, other: Place, along: Collection[str]) -> bool:
        """Whether it lies in the box that two others span."""
        pairs = [(self.at[key][end], one.at[key][end], other.at[key][end]) for key in along for end in (0, 1)]
        return all(min(a, b) <= mine <= max(a, b) for mine, a, b in pairs)


def middle(
    best: SweepCandidate, pool: Sequence[SweepCandidate], everyone: Sequence[SweepCandidate]
) -> tuple[SweepCandidate, str]:
    """(the candidate to take, what is to say of it): `best` itself where its neighbours are too few or too different.

    `pool`: those that may be taken. `everyone` is all that has figures: what lies between the best and another one and is worse
    than both parts them.
    """
    here = place_of(best)
    if here is None:
        return best, ""
    places = {one.name: place for one in everyone if (place := place_of(one)) is not None and place.fixed == here.fixed}
    found: list[SweepCandidate] = []
    along: tuple[str, ...] = ()
    for axes in _ways(here, places.values()):
        members = _joined(best, pool, everyone, places, axes)
        varied = tuple(key for key in axes if len({places[one.name].at[key] for one in members}) > 1)
        if len(members) >= FEWEST - 1 + max(len(varied), 1) and len(members) > len(found):
            found, along = members, varied
    if not found:
        return best, ""
    spans = {(key, end): sorted(places[one.name].at[key][end] for one in found) for key in along for end in (0, 1)}

    def off_centre(one: SweepCandidate) -> float:
        return sum(
            abs(places[one.name].at[key][end] - (values[0] + values[-1]) / 2) / (values[-1] - values[0])
            for (key, end), values in spans.items()
            if values[-1] > values[0]
        )

    chosen = min(found, key=lambda one: (round(off_centre(one), 9), found.index(one)))
    ranges = ", ".join(
        f"{key} {min(spans[key, 0][0], spans[key, 1][0]):g} to {max(spans[key, 0][-1], spans[key, 1][-1]):g}" for key in along
    )
    return chosen, f"{len(found)} candidates, {ranges}, cannot be told apart{_on(best)}, so the middle was taken"


def alike(one: SweepCandidate, best: SweepCandidate) -> bool:
    """Every gain of the best lies in the other's interval; without intervals nothing is called alike."""
    known = [name for name, gain in best.gains.items() if gain is not None]
    spans = [one.intervals.get(name) for name in known]
    return bool(known) and all(
        span is not None and span.low <= (best.gains[name] or 0.0) <= span.high for name, span in zip(known, spans, strict=True)
    )


def others_alike(best: SweepCandidate, pool: Sequence[SweepCandidate]) -> str:
    """Said of a choice that others might have been as well."""
    count = sum(one.name != best.name and alike(one, best) for one in pool)
    return f"; {count} other{'s' if count > 1 else ''} cannot be told apart from it{_on(best)}" if count else ""


def place_of(candidate: SweepCandidate) -> Place | None:
    """None where the recipe cannot be read, or is of another form than a list of models."""
    try:
        recipe = read_recipe(candidate.recipe)
    except MergingError:
        return None
    if not recipe.models or recipe.slices or recipe.modules or recipe.stages:
        return None
    at: dict[str, Ends] = {}
    fixed = [recipe.method, str(recipe.base)]
    for key, value in _settings(recipe):
        if (ends := _ends(value)) is not None:
            at[key] = ends
        else:
            fixed.append(f"{key}={value}")
    return Place(" ".join([*fixed, *sorted(at)]), at)


def _ways(here: Place, places: Collection[Place]) -> Iterator[tuple[str, ...]]:
    """Settings that may vary at once: all that do, then each by itself."""
    varied = tuple(key for key in here.at if len({place.at[key] for place in places}) > 1)
    if len(varied) > 1:
        yield varied
    yield from ((key,) for key in varied)


def _joined(
    best: SweepCandidate,
    pool: Sequence[SweepCandidate],
    everyone: Sequence[SweepCandidate],
    places: Mapping[str, Place],
    along: Collection[str],
) -> list[SweepCandidate]:
    """Those alike that differ from the best along these settings only, with nothing worse between; in the pool's order."""
    here = places[best.name]
    near = {
        name: place for name, place in places.items() if all(place.at[key] == here.at[key] for key in here.at if key not in along)
    }
    worse = [near[one.name] for one in everyone if one.name in near and one.gains and not alike(one, best)]
    found = []
    for one in pool:
        if one.name == best.name or (one.name in near and alike(one, best)):
            place = near[one.name]
            if not any(other.within(here, place, along) for other in worse):
                found.append(one)
    return found


def _settings(recipe: Recipe) -> Iterator[tuple[str, object]]:
    """Of the method by its name, of each source as `persona.weight`."""
    yield from recipe.parameters.items()
    for source in recipe.models:
        name = Path(source.model.adapter or source.model.base).name
        yield from ((f"{name}.{key}", value) for key, value in source.parameters.items())


def _ends(value: object) -> Ends | None:
    if isinstance(value, list):
        numbers = [as_number(one) for one in value]
        ends = (numbers[0], numbers[-1]) if numbers else (None, None)
    else:
        ends = (number, number) if not isinstance(value, bool) and (number := as_number(value)) is not None else (None, None)
    return None if ends[0] is None or ends[1] is None else (ends[0], ends[1])


def fewest_prompts(candidate: SweepCandidate) -> int:
    """Of a skill; the passages of perplexity are none."""
    skills = [count for name, count in candidate.prompts.items() if name in candidate.gains]
    return min(skills or candidate.prompts.values(), default=0)


def _on(best: SweepCandidate) -> str:
    prompts = fewest_prompts(best)
    return f" on {prompts} prompts" if prompts else ""
