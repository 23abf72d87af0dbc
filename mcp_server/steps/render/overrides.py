"""`--set KEY=VALUE`: changes to a plan before it is rendered.

    strategy=slerp                      another strategy; weights and parameters start afresh for it
    dtype=float32   tokenizer=union     base_model=REF   layers=32   depth=48
    parameters.density=0.4              for every source (or the whole recipe, where the parameter is shared)
    sources.persona.weight=0.7          for one source: weight, any parameter of scope `source`,
    sources.persona.ref=./adapter       or its ref, base, layer_range ([0, 16]) and prompts (["how much is", "solve"])

VALUE is YAML: a number, text, true/false, a gradient ([0.2, 0.8]) or filters ([{filter: self_attn, value: 0.3}, {value: 0.7}]).
Dots in a source's name are fine: the last dot ends it.
"""

from __future__ import annotations

from typing import Any, Final

from mcp_server import catalog
from mcp_server.catalog.models import Parameter, Strategy
from mcp_server.catalog.signals import source_names
from mcp_server.errors import BadInput, did_you_mean
from mcp_server.schemas.plan import Plan, StrategyChoice
from mcp_server.steps.recommend.weights import scaled, starting_parameters, weights_for
from mcp_server.steps.render.intent import DTYPES
from mcp_server.steps.scenario import scenario_from
from mcp_server.system.yaml_io import load_yaml

TOP: Final = ("strategy", "dtype", "tokenizer", "base_model", "layers", "depth")
_OF_SCENARIO: Final = ("ref", "base", "kind", "prompts", "layer_range")


def parse_overrides(pairs: list[str]) -> dict[str, str]:
    """`KEY=VALUE` pairs as a table; a key that comes twice is an error. Raises `BadInput`."""
    overrides: dict[str, str] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key.strip():
            raise BadInput(f"{pair!r} is not KEY=VALUE", "for example --set sources.persona.weight=0.7")
        if key.strip() in overrides:
            raise BadInput(f"{key.strip()!r} is set twice", "keep one of them")
        overrides[key.strip()] = value
    return overrides


def apply(plan: Plan, overrides: dict[str, str]) -> Plan:
    """The plan with every override applied; `strategy` first, whatever the order given. Raises `BadInput`."""
    values = {key: load_yaml(text, f"the value of {key}") if isinstance(text, str) else text for key, text in overrides.items()}
    if "strategy" in values:
        plan = _switch(plan, str(values.pop("strategy")))
    for key, value in values.items():
        plan = _apply(plan, key, value)
    return plan


def check_value(parameter: Parameter, value: Any) -> None:
    """Refuse a value that the parameter cannot take: a scalar, a gradient, or filters of either."""
    items = value if isinstance(value, list) and any(isinstance(item, dict) for item in value) else [value]
    for item in items:
        if isinstance(item, dict):
            if "value" not in item or set(item) - {"filter", "value"}:
                raise BadInput(f"{parameter.name}: a filter is {{filter: NAME, value: VALUE}}, not {item!r}", "write both keys")
            item = item["value"]  # noqa: PLW2901
        if problem := parameter.problem(item):
            start = parameter.start if parameter.start is not None else parameter.default
            raise BadInput(f"{parameter.name}: {problem}", f"try {start}" if start is not None else parameter.advice)


def _switch(plan: Plan, name: str) -> Plan:
    strategy = catalog.strategy(name)
    if plan.strategy and plan.strategy.id == name:
        return plan
    own = _own_shares(plan)
    weights = scaled(own, strategy) if own else weights_for(plan.scenario, strategy)[0]
    proposed = next((r.parameters for r in plan.runner_up if r.strategy == name), None)
    start = starting_parameters(plan.scenario.model_copy(update={"goal": None}) if own else plan.scenario, strategy, weights)
    parameters = proposed if proposed is not None else start
    kept = {
        source: {key: value for key, value in own.items() if key == "layer_range" or strategy.parameter(key)}
        for source, own in plan.source_parameters.items()
    }
    return plan.model_copy(
        update={
            "strategy": StrategyChoice(id=name, parameters=parameters),
            "weights": weights,
            "source_parameters": {source: own for source, own in kept.items() if own},
        }
    )


def _own_shares(plan: Plan) -> dict[str, float] | None:
    """The shares that the plan's weights were set to, or None where its weights are what its scenario gives."""
    total = sum(plan.weights.values())
    if plan.strategy is None or total <= 0 or plan.weights == weights_for(plan.scenario, catalog.strategy(plan.strategy.id))[0]:
        return None
    return {name: weight / total for name, weight in plan.weights.items()}


def _apply(plan: Plan, key: str, value: Any) -> Plan:
    head, _, rest = key.partition(".")
    if head == "parameters" and rest:
        return _set_parameter(plan, rest, value)
    if head == "sources" and "." in rest:
        name, _, field = rest.rpartition(".")
        return _set_of_source(plan, name, field, value)
    if key == "dtype":
        if value not in DTYPES:
            raise BadInput(f"dtype {value!r} is not one of {', '.join(DTYPES)}", "bfloat16 is what most sources have")
        return plan.model_copy(update={"dtype": value})
    if key == "tokenizer":
        return plan.model_copy(update={"tokenizer": str(value)})
    if key in ("base_model", "layers", "depth"):
        return _set_of_scenario(plan, {key: value})
    known = [*TOP, "parameters.NAME", "sources.NAME.weight", "sources.NAME.NAME"]
    raise BadInput(
        f"there is nothing called {key!r} to set.{did_you_mean(key, [*TOP, 'parameters', 'sources'])}",
        f"known: {', '.join(known)}",
    )


def strategy_of(plan: Plan) -> Strategy:
    """The plan's strategy from the catalogue. Raises `BadInput` when the verdict left it without one."""
    if plan.strategy is None:
        raise BadInput(
            f"the plan's verdict is {plan.verdict}, so it has no strategy to render",
            "set one to merge all the same: --set strategy=ties",
        )
    return catalog.strategy(plan.strategy.id)


def _parameter(strategy: Strategy, name: str) -> Parameter:
    if parameter := strategy.parameter(name):
        return parameter
    names = [p.name for p in strategy.parameters]
    raise BadInput(
        f"{strategy.id} has no parameter {name!r}.{did_you_mean(name, names)}",
        f"it has: {', '.join(names)}" if names else "it has none",
    )


def _set_parameter(plan: Plan, name: str, value: Any) -> Plan:
    strategy = strategy_of(plan)
    parameter = _parameter(strategy, name)
    if name == "weight":
        raise BadInput("weights are set per source", "for example --set sources.NAME.weight=0.7")
    check_value(parameter, value)
    choice = StrategyChoice(id=strategy.id, parameters={**(plan.strategy.parameters if plan.strategy else {}), name: value})
    cleared = {source: {k: v for k, v in own.items() if k != name} for source, own in plan.source_parameters.items()}
    return plan.model_copy(update={"strategy": choice, "source_parameters": {s: own for s, own in cleared.items() if own}})


def _set_of_source(plan: Plan, name: str, field: str, value: Any) -> Plan:
    names = source_names(plan.scenario)
    if name not in names and name not in plan.weights:
        raise BadInput(f"there is no source {name!r}.{did_you_mean(name, names)}", f"sources: {', '.join(names) or 'none'}")
    if field in _OF_SCENARIO:
        sources = [source.model_dump(exclude_none=True) for source in plan.scenario.sources or []]
        sources[names.index(name)] |= {"name": name, field: value}
        return _set_of_scenario(plan, {"sources": sources})
    strategy = strategy_of(plan)
    if field == "weight" and strategy.parameter("t") and strategy.weights == "sum_one":
        return _set_share(plan, name, value)
    if strategy.parameter(field) is None:
        known = [p.name for p in strategy.parameters if p.scope == "source"] + list(_OF_SCENARIO)
        raise BadInput(f"a source of {strategy.id} has no {field!r}.{did_you_mean(field, known)}", f"it has: {', '.join(known)}")
    parameter = _parameter(strategy, field)
    if parameter.scope == "shared":
        raise BadInput(f"{field} of {strategy.id} is one for the whole recipe", f"--set parameters.{field}={value}")
    check_value(parameter, value)
    if field == "weight" and isinstance(value, int | float):
        return plan.model_copy(
            update={"weights": {**plan.weights, name: float(value)}, "source_parameters": _own(plan, name, "weight")}
        )
    return plan.model_copy(update={"source_parameters": _own(plan, name, field, value)})


def _set_share(plan: Plan, name: str, value: Any) -> Plan:
    """Interpolating methods have no weights; the two shares give `t`, so setting one of them moves it."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1 or len(plan.weights) != 2:
        raise BadInput(f"the share of {name!r} is {value!r}; between two sources a share lies in [0, 1]", "try 0.5")
    weights = {source: float(value) if source == name else round(1 - float(value), 6) for source in plan.weights}
    choice = plan.strategy.model_copy(update={"parameters": {**plan.strategy.parameters, "t": None}}) if plan.strategy else None
    return plan.model_copy(update={"weights": weights, "strategy": choice})


def _own(plan: Plan, name: str, field: str, value: Any = None) -> dict[str, dict[str, Any]]:
    own = {key: v for key, v in plan.source_parameters.get(name, {}).items() if key != field}
    if value is not None:
        own[field] = value
    rest = {source: parameters for source, parameters in plan.source_parameters.items() if source != name}
    return {**rest, name: own} if own else rest


def _set_of_scenario(plan: Plan, changes: dict[str, Any]) -> Plan:
    data = {**plan.scenario.model_dump(exclude_none=True), **changes}
    return plan.model_copy(update={"scenario": scenario_from(data, "the plan with your changes")})
