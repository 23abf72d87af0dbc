"""The parameter language, as mergekit 0.1.5 evaluates it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some

from mcp_server.errors import Malformed
from mcp_server.formats.recipe.parameters import REQUIRED, Kind, resolve

Q, UP, NORM = "model.layers.0.self_attn.q_proj.weight", "model.layers.0.mlp.up_proj.weight", "model.norm.weight"


def value_of(setting: object, tensor: str, t: float, kind: Kind) -> Any:
    return resolve("x", (setting,), tensor, t, kind, None, "the recipe")


@pytest.mark.parametrize(
    ("setting", "tensor", "t", "expected"),
    [
        (0.5, Q, 0, 0.5),
        ("1e-1", Q, 0, 0.1),
        ([0, 1], Q, 0.25, 0.25),
        ([0, 0.5, 1], Q, 0.75, 0.75),
        ([0, 10, 20], Q, 1, 20),
        ([3], Q, 0.7, 3),
        ([], Q, 0, None),
        ({"filter": "self_attn", "value": 2}, Q, 0, 2),
        ({"filter": "self_attn", "value": 2}, UP, 0, None),
        ([{"filter": "mlp", "value": [0, 4]}, {"value": 9}], UP, 0.5, 2),
        ([{"filter": "mlp", "value": [0, 4]}, {"value": 9}], NORM, 0.5, 9),
        ([{"filter": "*", "value": 1}, {"filter": "mlp", "value": 2}], UP, 0, 1),
    ],
)
def test_numbers(setting: object, tensor: str, t: float, expected: float | None) -> None:
    assert value_of(setting, tensor, t, "number") == expected


@pytest.mark.parametrize(
    ("setting", "t", "expected"),
    [
        (True, 0, True),
        ("false", 0, False),
        ("yes", 0, True),
        (0, 0, False),
        ([True, False], 0.9, True),
        ([True, False], 1, False),
    ],
)
def test_flags_are_chosen_never_interpolated(setting: object, t: float, expected: bool) -> None:
    assert value_of(setting, Q, t, "flag") is expected


@pytest.mark.parametrize(
    ("setting", "kind", "match"),
    [
        ("half", "number", "is not a number"),
        ("maybe", "flag", "neither true nor false"),
        ([0.5, "half"], "number", "x of the recipe is 'half', which is not a number"),
        ({"value": "maybe"}, "flag", "x of the recipe is 'maybe', neither true nor false"),
    ],
)
def test_a_value_of_another_kind_is_refused(setting: object, kind: Kind, match: str) -> None:
    with pytest.raises(Malformed, match=match):
        value_of(setting, Q, 0, kind)


def test_the_nearest_place_that_has_a_value_wins() -> None:
    nearest_first = ({"filter": "mlp", "value": 1}, 2, 3)
    assert [resolve("weight", nearest_first, name, 0, "number", REQUIRED, "x") for name in (UP, Q)] == [1, 2]
    assert resolve("weight", nearest_first[:1], Q, 0, "number", 7, "x") == 7
    with pytest.raises(Malformed, match="no weight is given for x at model"):
        resolve("weight", nearest_first[:1], Q, 0, "number", REQUIRED, "x")


numbers = some.floats(-1e3, 1e3) | some.integers(-3, 3) | some.sampled_from(["1e-3", "2", True])
flags = some.booleans() | some.sampled_from(["yes", "off", "T", 0, 1])


def settings_of(scalars: some.SearchStrategy[Any]) -> some.SearchStrategy[Any]:
    plain = scalars | some.lists(scalars, max_size=4)
    filtered = some.fixed_dictionaries({"value": plain}, optional={"filter": some.sampled_from([None, "*", "", "mlp", "q_proj"])})
    return plain | filtered | some.lists(filtered, min_size=1, max_size=3)


@pytest.fixture(scope="module")
def by_mergekit() -> Callable[..., Any]:
    """(settings nearest first, tensor, t, type, default) → the value that mergekit's own resolver gives."""
    from mergekit.config import InputModelDefinition
    from mergekit.merge_methods.base import ParameterScope, ParameterSpec
    from mergekit.parameter_resolver import resolve_parameter

    def value(places: list[Any], tensor: str, t: float, python_type: type, default: Any) -> Any:
        typed = [InputModelDefinition.model_validate({"model": "m", "parameters": {"x": place}}).parameters for place in places]
        parameter = ParameterSpec("x", python_type, ParameterScope.SHARED, default=default)
        return resolve_parameter(parameter, typed, tensor_name=tensor, t=t)

    return value


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@given(data=some.data())
def test_it_resolves_as_mergekit_does(by_mergekit: Callable[..., Any], data: some.DataObject) -> None:
    kind, scalars, python_type = data.draw(some.sampled_from([("number", numbers, float), ("flag", flags, bool)]))
    places = data.draw(some.lists(settings_of(scalars), max_size=3))
    tensor, t = data.draw(some.sampled_from([Q, UP, NORM])), data.draw(some.floats(0, 1))
    theirs = by_mergekit(places, tensor, t, python_type, python_type(7))
    ours = resolve("x", places, tensor, t, kind, python_type(7), "the recipe")
    assert ours == theirs or math.isclose(ours, theirs, rel_tol=1e-15)
