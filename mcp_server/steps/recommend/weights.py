"""Weights and starting parameters: how much of each source goes in.

Averages dilute: what one source gets, the others lose, so they take shares with a sum of one. Shares are equal: by √examples the
smaller source of the running example kept 5 % of its skill; who wants examples to count says so (`weighting: examples`). TIES
counts weights only where sources disagree; there √examples, the lessons' rule, is taken while nothing is measured. Importance
multiplies shares; measured norms divide them, because with unequal norms equal shares are not equal influence.

Sums of deltas dilute nothing: each source goes in whole, at the strength that it was trained to, and `lambda` scales the sum. Two
sources that are measured apart begin at lambda 1, unless one acts in the other's place; all others begin below it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from mcp_server.catalog import threshold
from mcp_server.catalog.models import Strategy
from mcp_server.catalog.signals import apart, cross_context_rate, examples_known, favoured, norm_ratio, trained, widest_cosine
from mcp_server.schemas.plan import FiredRule
from mcp_server.schemas.scenario import Scenario, ScenarioSource

_MEASURED = "measured here, docs/benchmark.md: weights by √examples lost a skill that whole ones kept"
_LESSON = "Lesson 0, Step 5: 0.4/0.6 for 200 and 500"
_SMALLEST_NORM = 1e-9
"""Below that a task vector is rounding dust, and dividing by it would give it all the weight."""


def weights_for(scenario: Scenario, strategy: Strategy) -> tuple[dict[str, float], list[FiredRule]]:
    """The weights that a plan of this strategy begins with, and why."""
    if strategy.weights == "whole":
        return _whole(scenario)
    portions, why = shares(scenario, elected=strategy.deltas == "elected")
    return scaled(portions, strategy), why


def _whole(scenario: Scenario) -> tuple[dict[str, float], list[FiredRule]]:
    """Every source at 1; one that is favoured stays there while the others are reduced, and so does the most important one."""
    sources = dict(trained(scenario))
    if not sources:
        return {}, []
    weights = dict.fromkeys(sources, 1.0)
    because = "each source's change goes in whole (examples do not count in a sum of deltas), and lambda scales the sum"
    fired = [_rule("weights_whole", because, _MEASURED)]
    importance = {name: source.importance or 1.0 for name, source in sources.items()}
    if len(set(importance.values())) > 1:
        floor, most = threshold("lambda_start"), max(importance.values())
        weights = {name: round(max(floor, value / most), 2) for name, value in importance.items()}
        because = f"the most important source whole, the others by their importance, none below {floor:g}"
        fired.append(_rule("weights_by_importance", because, "your scenario; " + _MEASURED))
    if (name := favoured(scenario)) in weights and len(weights) > 1:
        beside = _summed_start(len(weights))
        weights = {other: 1.0 if other == name else beside for other in weights}
        because = f"{name} is favoured: it stays whole (lambda 1), the others go in at {beside:g}, where a balanced plan has all"
        fired.append(_rule("weights_favour", because, _MEASURED))
    return weights, fired


def _summed_start(count: int) -> float:
    """How much of each of `count` sources a balanced sum takes."""
    return min(threshold("lambda_start"), round(threshold("lambda_total") / max(count, 1), 2))


def shares(scenario: Scenario, *, elected: bool = False) -> tuple[dict[str, float], list[FiredRule]]:
    """Each trained source's share (they sum to one), and why. `elected`: weights count only where sources disagree."""
    sources = dict(trained(scenario))
    if not sources:
        return {}, []
    raw = dict.fromkeys(sources, 1.0)
    unmeasured = elected and scenario.weighting is None and widest_cosine(scenario) is None
    if not (scenario.weighting == "examples" or unmeasured):
        fired = [_rule("weights_equal", "equal shares; √examples only where it is asked for (weighting: examples)", _MEASURED)]
    elif examples_known(scenario):
        raw = {name: math.sqrt(source.training_examples or 0) for name, source in sources.items()}
        counts = ", ".join(f"{name} {source.training_examples}" for name, source in sources.items())
        why = "as asked for" if scenario.weighting else "nothing else is measured, and they decide elections only"
        fired = [_rule("weights_by_examples", f"√training examples, normalised ({counts}): {why}", _LESSON)]
    else:
        because = "not every source says how many examples it saw, so all count the same"
        fired = [_rule("weights_equal", because, "no fact to weigh by")]
    if any(source.importance not in (None, 1.0) for source in sources.values()):
        raw = {name: value * (sources[name].importance or 1.0) for name, value in raw.items()}
        fired.append(_rule("weights_by_importance", "multiplied by the importance that you gave", "your scenario"))
    ratio = norm_ratio(scenario)
    if ratio is not None and ratio >= threshold("norm_imbalance") and _can_divide(sources.values()):
        raw = {name: value / (sources[name].norm or 1.0) for name, value in raw.items()}
        because = "divided by the measured norms, so that influence follows the shares"
        fired.append(_rule("weights_by_norm", because, "measured here: the source with half the norm lost its skill"))
    total = math.fsum(raw.values())
    result = {name: value / total for name, value in raw.items()}
    if (name := favoured(scenario)) in result and len(result) > 1:
        result = _favour(result, str(name))
        fired.append(
            _rule("weights_favour", f"{name} is favoured with at least {threshold('favour_share'):g}", "Lesson 0, Weighted Merge")
        )
    return result, fired


def _can_divide(sources: Iterable[ScenarioSource]) -> bool:
    return all((source.norm or 0) >= _SMALLEST_NORM for source in sources)


def scaled(shares: dict[str, float], strategy: Strategy) -> dict[str, float]:
    """Shares as the recipe states them, rounded to two decimals (more where one would vanish) with the sum kept.

    A sum of deltas takes shares that a user chose times the number of sources, so that equal shares are whole sources.
    """
    if strategy.weights == "none" or not shares:
        return {}
    total = 1.0 if strategy.weights == "sum_one" else float(len(shares))
    digits = 2 if min(shares.values()) * total >= 0.05 else 4
    unit = 10**digits
    exact = {name: share * total * unit for name, share in shares.items()}
    rounded = {name: math.floor(value) for name, value in exact.items()}
    missing = round(total * unit) - sum(rounded.values())
    by_rest = sorted(exact, key=lambda name: rounded[name] - exact[name])
    for name in by_rest[:missing]:
        rounded[name] += 1
    return {name: value / unit for name, value in rounded.items()}


def starting_parameters(scenario: Scenario, strategy: Strategy, weights: dict[str, float]) -> dict[str, Any]:
    """What a plan begins with: each parameter's `start`, t from the weights, lambda by the sources (1 to favour one)."""
    parameters: dict[str, Any] = {}
    whole = len(trained(scenario)) == 1 or favoured(scenario) in weights or goes_whole(scenario)
    for parameter in strategy.parameters:
        if parameter.name == "weight":
            continue
        if parameter.name == "t" and parameter.scope == "shared" and strategy.weights == "sum_one":
            parameters["t"] = list(weights.values())[-1] if len(weights) == 2 else parameter.start
        elif parameter.start_total is not None:
            count = len(trained(scenario))
            start = min(float(parameter.start), round(parameter.start_total / max(count, 1), 2))
            parameters[parameter.name] = parameter.default if whole else start
        elif parameter.start is not None:
            parameters[parameter.name] = parameter.start
    return parameters


def goes_whole(scenario: Scenario) -> bool:
    """Two sources that are measured apart, of which none is known to act in the other's place."""
    leak = cross_context_rate(scenario)
    return len(trained(scenario)) == 2 and apart(scenario) is True and (leak is None or leak <= threshold("cross_context_leak"))


def _favour(shares: dict[str, float], name: str) -> dict[str, float]:
    top = max(shares[name], threshold("favour_share"))
    rest = 1.0 - shares[name]
    return {other: top if other == name else share / rest * (1.0 - top) for other, share in shares.items()}


def _rule(name: str, because: str, source: str) -> FiredRule:
    return FiredRule(id=name, because=because, source=source)
