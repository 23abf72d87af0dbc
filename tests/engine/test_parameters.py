"""The parameter language, as mergekit 0.1.5 evaluates it."""

from __future__ import annotations

import pytest

from mcp_server.core.errors import Malformed
from mcp_server.engine.parameters import REQUIRED, evaluate, resolve

Q, UP, NORM = "model.layers.0.self_attn.q_proj.weight", "model.layers.0.mlp.up_proj.weight", "model.norm.weight"


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
    assert evaluate(setting, tensor, t, "number") == expected


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
    assert evaluate(setting, Q, t, "flag") is expected


@pytest.mark.parametrize(
    ("setting", "kind", "match"),
    [
        ("half", "number", "is not a number"),
        ("maybe", "flag", "neither true nor false"),
        ([1, {"value": 2}], "number", "mixes plain and conditional"),
        ({"filter": "mlp", "vale": 1}, "number", "conditional value"),
        ([[1, 2], 3], "number", "mixes plain and conditional"),
    ],
)
def test_what_cannot_be_meant_is_refused(setting: object, kind: str, match: str) -> None:
    with pytest.raises(Malformed, match=match):
        evaluate(setting, Q, 0, kind)  # type: ignore[arg-type]


def test_the_nearest_place_that_has_a_value_wins() -> None:
    source, part, recipe = {"weight": {"filter": "mlp", "value": 1}}, {"weight": 2}, {"weight": 3}
    found = [resolve("weight", (source, part, recipe), name, 0, "number", REQUIRED, "x") for name in (UP, Q)]
    assert found == [1, 2]
    assert resolve("weight", (source, {}, {}), Q, 0, "number", 7, "x") == 7
    with pytest.raises(Malformed, match="no weight is given for x at model"):
        resolve("weight", (source, {}, {}), Q, 0, "number", REQUIRED, "x")
