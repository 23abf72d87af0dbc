"""What a plan leaves open, as the axes of a search: method, λ, density, each source's weight, and how it changes with depth.

A point is plain data: axis → number or name. `settings_of` writes a point as `render --set` takes it; `point_of` reads where a
candidate stands, so that the plan and the shortlist can begin the search.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from mcp_server import catalog
from mcp_server.catalog.models import Strategy
from mcp_server.errors import BadInput
from mcp_server.formats.recipe import as_number
from mcp_server.schemas.base import Frozen
from mcp_server.schemas.plan import Plan
from mcp_server.steps.render.overrides import apply
from mcp_server.steps.sweep.candidates import Candidate

Value = float | str | bool
Point = dict[str, Value]
METHOD: Final = "method"
GRADED: Final = "graded"
"""Whether the weights change with depth. Without it the axes of depth are not asked, which keeps a short search small."""
STEEPEST: Final = 0.5
"""A weight w then runs from w/2 in the first layers to 3w/2 in the last, or the other way."""


class Axis(Frozen):
    """A number from `low` to `high`, written in steps of `step`; or one of `choices`."""

    name: str
    low: float = 0.0
    high: float = 1.0
    step: float = 0.05
    choices: tuple[str, ...] | tuple[bool, ...] = ()


LAMBDA: Final = Axis(name="lambda", low=0.2, high=1.3)
DENSITY: Final = Axis(name="density", low=0.2, high=0.95)
WEIGHTS: Final = {"whole": (0.5, 1.4), "sum_one": (0.1, 1.0)}
"""Kind of weights → where they are searched: a sum of deltas takes each whole or nearly (λ scales all of them), an average
shares."""


class Space:
    """The axes of one plan's search over `methods`, for the sources that the plan weighs."""

    def __init__(self, plan: Plan, candidates: Iterable[Candidate]) -> None:
        self.plan = plan
        own = plan.strategy.id if plan.strategy else ""
        self.methods = tuple(dict.fromkeys(c.settings.get("strategy", own) for c in candidates))

    def axes(self, known: Mapping[str, Value]) -> Iterator[Axis]:
        """Axis after axis; which come next depends on the values that are `known` by then."""
        yield Axis(name=METHOD, choices=self.methods)
        strategy = catalog.strategy(str(known[METHOD]))
        if _scales(strategy):
            yield LAMBDA
        if _drops(strategy):
            yield DENSITY
        names = self._weighed(strategy)
        kind = strategy.weights
        for name in names:
            low, high = WEIGHTS[kind]
            yield Axis(name=f"{kind}.{name}", low=low, high=high)
        if names and not strategy.parameter("t"):
            yield Axis(name=GRADED, choices=(False, True))
            if known[GRADED]:
                for name in names:
                    yield Axis(name=f"depth.{name}", low=-STEEPEST, high=STEEPEST, step=0.1)

    def settings_of(self, point: Mapping[str, Value]) -> dict[str, str]:
        """`render --set` of a point, its numbers rounded to their steps."""
        strategy = catalog.strategy(str(point[METHOD]))
        settings = {"strategy": strategy.id}
        axes = {axis.name: axis for axis in self.axes(point)}
        at = {name: _rounded(axis, point[name]) for name, axis in axes.items() if not axis.choices}
        settings |= {f"parameters.{name}": f"{at[name]:g}" for name in ("lambda", "density") if name in at}
        for name in self._weighed(strategy):
            weight, slope = at[f"{strategy.weights}.{name}"], at.get(f"depth.{name}", 0.0)
            ends = [round(weight * (1 - slope), 3), round(weight * (1 + slope), 3)]
            settings[f"sources.{name}.weight"] = f"{weight:g}" if not slope else f"[{ends[0]:g}, {ends[1]:g}]"
        return settings

    def point_of(self, candidate: Candidate) -> Point | None:
        """Where a candidate of the plan stands; None where it lies outside the axes (filters, a method without weights)."""
        try:
            plan = apply(self.plan, candidate.settings)
        except BadInput:
            return None
        if plan.strategy is None or plan.source_parameters:
            return None
        strategy = catalog.strategy(plan.strategy.id)
        point: Point = {METHOD: strategy.id, GRADED: False}
        for name in ("lambda", "density"):
            parameter = strategy.parameter(name)
            if parameter is not None and (number := as_number(plan.strategy.parameters.get(name, parameter.default))) is not None:
                point[name] = number
        point |= {f"{strategy.weights}.{name}": weight for name, weight in plan.weights.items()}
        if strategy.id not in self.methods:
            return None
        known: Point = {}
        for axis in self.axes(point):
            value = point.get(axis.name)
            if value is None or (not axis.choices and not axis.low <= float(value) <= axis.high):
                return None
            known[axis.name] = value
        return known

    def _weighed(self, strategy: Strategy) -> list[str]:
        """The sources whose weights are searched: all; of a method that takes one share between two, the first."""
        names = list(self.plan.weights)
        if strategy.weights not in WEIGHTS or not (strategy.parameter("weight") or strategy.parameter("t")):
            return []
        if strategy.parameter("t"):
            return names[:1] if len(names) == 2 else []
        return names if len(names) > 1 or not _scales(strategy) else []


def _scales(strategy: Strategy) -> bool:
    return strategy.parameter("lambda") is not None


def _drops(strategy: Strategy) -> bool:
    """Whether density is part of the method, and not only accepted by it."""
    return (parameter := strategy.parameter("density")) is not None and parameter.start is not None


def _rounded(axis: Axis, value: Value) -> float:
    return round(round(float(value) / axis.step) * axis.step, 4)
