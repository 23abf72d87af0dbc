"""Where to look next: optuna's tree-structured Parzen estimator over the axes that a plan leaves open.

Two goals at once: the worst objective and the mean of the skills' gains, as shares of their targets. Points that were measured
elsewhere (the plan, the shortlist, an earlier run of the same search) are told with their figures, so the first proposal already
knows them. The same history and seed give the same proposals, which is what lets an interrupted search go on where it was.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState, create_trial

from mcp_server.steps.sweep.space import Axis, Point, Space

Goals = tuple[float, float]
"""(the worst objective, the mean of the skills' gains): shares of their targets, the more the better."""


class Search:
    """`tell` it points and their goals, `propose` gives the next point."""

    def __init__(self, space: Space, seed: int) -> None:
        self.space = space
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # group: axes that only some methods have
            sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=4, multivariate=True, group=True, constant_liar=True)
        self._study = optuna.create_study(directions=["maximize", "maximize"], sampler=sampler)
        self._asked: dict[int, optuna.Trial] = {}

    def propose(self) -> tuple[int, Point]:
        """A number to tell the goals under, and the point."""
        trial = self._study.ask()
        point: Point = {}
        for axis in self.space.axes(point):
            if axis.choices:
                point[axis.name] = trial.suggest_categorical(axis.name, axis.choices)
            else:
                point[axis.name] = trial.suggest_float(axis.name, axis.low, axis.high)
        self._asked[trial.number] = trial
        return trial.number, point

    def tell(self, number: int, goals: Goals | None) -> None:
        """Of a proposal; None: it could not be measured."""
        trial = self._asked.pop(number)
        if goals is None:
            self._study.tell(trial, state=TrialState.FAIL)
        else:
            self._study.tell(trial, goals)

    def know(self, point: Mapping[str, Any], goals: Goals) -> None:
        """A point that was measured without having been proposed."""
        distributions = {axis.name: _distribution(axis) for axis in self.space.axes(point)}
        self._study.add_trial(create_trial(params=dict(point), distributions=distributions, values=list(goals)))


def _distribution(axis: Axis) -> BaseDistribution:
    return CategoricalDistribution(axis.choices) if axis.choices else FloatDistribution(axis.low, axis.high)
