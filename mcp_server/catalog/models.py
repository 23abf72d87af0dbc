"""The shape of the knowledge files under `rules/`. A file that does not fit is refused when the catalogue is loaded."""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import Field, model_validator

from mcp_server.schemas.base import Frozen, Verdict

Scope = Literal["source", "shared"]
Stage = Literal["verdict", "strategy", "warning", "question", "runner_up", "evaluation"]
Operator = Literal["is", "is_not", "in", "below", "at_most", "above", "at_least", "known", "unknown"]


class Cited(Frozen):
    """Where a statement comes from: a paper, a seed lesson, mergekit's code, or a measurement of ours."""

    title: str
    link: str = ""


class Range(Frozen):
    """Legal values of a number. `above`/`below` exclude their end, `at_least`/`at_most` include it."""

    above: float | None = None
    at_least: float | None = None
    at_most: float | None = None
    below: float | None = None

    def holds(self, value: float) -> bool:
        return (
            math.isfinite(value)
            and (self.above is None or value > self.above)
            and (self.at_least is None or value >= self.at_least)
            and (self.at_most is None or value <= self.at_most)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        low = f"({self.above:g}" if self.above is not None else f"[{self.at_least:g}" if self.at_least is not None else "(−∞"
        high = f"{self.below:g})" if self.below is not None else f"{self.at_most:g}]" if self.at_most is not None else "∞)"
        return f"{low}, {high}"


class Parameter(Frozen):
    """One parameter of a strategy by mergekit's name. `default` is the engine's; `start` is what a plan begins with."""

    name: str
    scope: Scope
    type: Literal["float", "int", "bool", "str"] = "float"
    required: bool = False
    default: Any = None
    start: Any = None
    start_total: float | None = Field(
        default=None, gt=0, description="with k sources a plan starts at the smaller of `start` and start_total ÷ k"
    )
    range: Range | None = None
    choices: list[str] | None = None
    advice: str = ""
    source: str = ""

    @model_validator(mode="after")
    def _values_are_legal(self) -> Parameter:
        if self.required and self.default is not None:
            raise ValueError(f"parameter {self.name!r} is required and has the default {self.default!r}; keep one")
        for field in ("default", "start"):
            value = getattr(self, field)
            if value is not None and (problem := self.problem(value)):
                raise ValueError(f"{field} of parameter {self.name!r}: {problem}")
        return self

    def problem(self, value: Any) -> str:
        """Why `value` is not legal for this parameter, or ''. Gradients (lists) are checked point by point."""
        if isinstance(value, list):
            return next((text for item in value if (text := self.problem(item))), "") if value else "the list is empty"
        if self.type == "bool":
            return "" if isinstance(value, bool) else f"{value!r} is not true or false"
        if self.type == "str":
            if not isinstance(value, str):
                return f"{value!r} is not text"
            return f"{value!r} is not one of {', '.join(self.choices)}" if self.choices and value not in self.choices else ""
        if isinstance(value, bool) or not isinstance(value, int | float):
            return f"{value!r} is not a number"
        if self.type == "int" and not float(value).is_integer():
            return f"{value!r} is not a whole number"
        if not math.isfinite(value):
            return f"{value!r} is not finite"
        return f"{value:g} is outside {self.range}" if self.range and not self.range.holds(value) else ""


class Inputs(Frozen):
    """How many sources a plan names. The base is counted apart, except where `counts_base` says otherwise."""

    min: int = Field(ge=1)
    max: int | None = None
    base: Literal["required", "optional", "ignored", "one_of_the_sources"]
    accepts: tuple[int, int | None] = Field(
        default=(1, None), description="least and most models that the method takes in a recipe, the base counted"
    )
    accepts_beside_base: tuple[int, int | None] = Field(default=(0, None), description="the same without the base")
    note: str = ""


class Cost(Frozen):
    """`streams`: block by block; `whole_tensor`: must hold the largest tensor of every source at once."""

    kind: Literal["streams", "whole_tensor", "copies"]
    note: str = ""


class Strategy(Frozen):
    """One merge method: what it does, what it needs, when to use it."""

    id: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    title: str
    idea: str = Field(description="one line")
    method: str | None = Field(default=None, description="mergekit's merge_method, where it is not the id (a preset of a method)")
    runner: Literal["mergekit-yaml", "mergekit-moe", "mergekit-multi"] = "mergekit-yaml"
    inputs: Inputs
    parameters: list[Parameter] = Field(default_factory=list)
    weights: Literal["sum_one", "whole", "none"] = Field(
        description="shares with a sum of one (averages), or every source whole (sums of deltas, which lambda scales)"
    )
    deltas: Literal["added", "elected", "none"] = Field(
        default="none",
        description="the sources' weighted changes are added up, added where they agree with an elected sign, or neither: "
        "averages on a sphere, selections, copies",
    )
    sparsify: Literal["none", "magnitude", "random", "outliers", "della"] = Field(
        default="none",
        description="which entries of each change are dropped first: the smallest, random ones, both ends, by rank",
    )
    sweep_rank: int | None = Field(default=None, description="a sweep tries it over several values of lambda, in this order")
    when: list[str] = Field(min_length=1)
    when_not: list[str] = Field(min_length=1)
    cost: Cost
    random: bool = Field(default=False, description="repeats only with a seed")
    adapter_space: bool = Field(default=False, description="exact on adapters alone (--output adapter)")
    departs: list[str] = Field(default_factory=list, description="where the engine differs from the paper")
    sources: list[Cited] = Field(min_length=1)
    checked_against: str

    @model_validator(mode="after")
    def _names_are_unique(self) -> Strategy:
        names = [p.name for p in self.parameters]
        if twice := sorted({n for n in names if names.count(n) > 1}):
            raise ValueError(f"parameter {twice[0]!r} is described twice")
        if self.inputs.max is not None and self.inputs.max < self.inputs.min:
            raise ValueError(f"inputs.max {self.inputs.max} is below inputs.min {self.inputs.min}")
        return self

    @property
    def merge_method(self) -> str:
        return self.method or self.id

    def parameter(self, name: str) -> Parameter | None:
        return next((p for p in self.parameters if p.name == name), None)


class Threshold(Frozen):
    name: str
    value: float
    unit: str = ""
    why: str
    source: str


class Condition(Frozen):
    """`signal op value`; `value` may be `{threshold: name}`. An unknown signal satisfies only `unknown`."""

    signal: str
    op: Operator
    value: Any = None


class RunnerUpRule(Frozen):
    strategy: str
    parameters: dict[str, Any] = Field(default_factory=dict)


class EvaluationRule(Frozen):
    suite: str
    when: str = "after the merge"


class Rule(Frozen):
    """One line of the decision table. All conditions of `when` must hold; the first verdict and the first strategy win."""

    id: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    stage: Stage
    when: list[Condition] = Field(default_factory=list)
    verdict: Verdict | None = None
    choose: str | None = None
    warn: str | None = None
    ask: str | None = None
    runner_up: RunnerUpRule | None = None
    evaluate: EvaluationRule | None = None
    plan: bool = Field(default=False, description="a verdict that is not a merge gives the plan for afterwards all the same")
    because: str
    source: str

    @model_validator(mode="after")
    def _says_one_thing(self) -> Rule:
        fields = {
            "verdict": "verdict",
            "strategy": "choose",
            "warning": "warn",
            "question": "ask",
            "runner_up": "runner_up",
            "evaluation": "evaluate",
        }
        given = [field for field in fields.values() if getattr(self, field) is not None]
        if given != [fields[self.stage]]:
            raise ValueError(
                f"a rule of stage {self.stage!r} says {fields[self.stage]!r} and nothing else; rule {self.id!r} says {given}"
            )
        return self


class Question(Frozen):
    """Asked when its signal is unknown and one of `answers` would change the verdict or the strategy."""

    signal: str
    ask: str
    answers: list[Any] = Field(min_length=1)
    source: str


class Catalog(Frozen):
    strategies: dict[str, Strategy]
    rules: list[Rule]
    thresholds: dict[str, Threshold]
    questions: list[Question]

    def threshold(self, name: str) -> float:
        """The number of a named threshold; a name that does not exist is a bug of the caller."""
        return self.thresholds[name].value
