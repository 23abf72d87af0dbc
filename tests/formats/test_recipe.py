"""Recipes as typed data: what mergekit's reader accepts is read, what it refuses is refused with the place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mcp_server.errors import Malformed
from mcp_server.formats.recipe import MISSING, ModelRef, Source, evaluate, has_fallback, parse_ref, read_recipe, resolve

RECIPE = """
merge_method: ties
base_model: org/base
models:
  - model: org/base+./lora
    parameters: {weight: 0.4}
  - model: org/b@v2
    parameters: {weight: 0.6, density: [1, 0.5]}
parameters: {density: 0.5, normalize: true}
dtype: bfloat16
"""


@pytest.mark.parametrize(
    ("text", "ref"),
    [
        ("org/a", ModelRef(base="org/a")),
        ("./a b", ModelRef(base="./a b")),
        ("org/a@main", ModelRef(base="org/a", revision="main")),
        ("org/a+lora", ModelRef(base="org/a", adapter="lora")),
        ("org/a@v1+lora@v2", ModelRef(base="org/a", revision="v1", adapter="lora", adapter_revision="v2")),
    ],
)
def test_a_reference_is_read_and_written_alike(text: str, ref: ModelRef) -> None:
    assert parse_ref(text) == ref
    assert str(ref) == text


@pytest.mark.parametrize("value", ["a+b+c", "a@b@c", "", "+lora", "a+", 3, None, ["a"], {"path": "a"}, {"model": 3}])
def test_a_reference_that_mergekit_cannot_parse_is_refused(value: Any) -> None:
    with pytest.raises(Malformed):
        parse_ref(value)


def test_the_table_form_of_a_reference() -> None:
    table = {"model": {"path": "org/a", "revision": "v1"}, "lora": "lora", "override_architecture": "MistralForCausalLM"}
    expected = ModelRef(base="org/a", revision="v1", adapter="lora", override_architecture="MistralForCausalLM")
    assert parse_ref(table) == expected


def test_references_come_once_each_with_the_base_first() -> None:
    assert [str(ref) for ref in read_recipe(RECIPE).references()] == ["org/base", "org/base+./lora", "org/b@v2"]


def test_an_unlisted_base_is_appended_to_models_but_not_to_slices() -> None:
    group = read_recipe(RECIPE).groups()[0]
    assert ([str(s.model) for s in group.sources], group.base_added) == (["org/base+./lora", "org/b@v2", "org/base"], True)
    assert [str(s.model) for s in group.others] == ["org/base+./lora", "org/b@v2"]
    sliced = "merge_method: ties\nbase_model: b\nslices: [{sources: [{model: a, layer_range: [0, 2]}], parameters: {weight: 1}}]"
    group = read_recipe(sliced).groups()[0]
    assert ([str(s.model) for s in group.sources], group.base_added) == (["a"], False)


def test_settings_come_nearest_first() -> None:
    recipe = read_recipe(
        "merge_method: ties\nbase_model: b\nparameters: {weight: 1}\n"
        "slices: [{parameters: {weight: 2}, sources: [{model: a, layer_range: [0, 2], parameters: {weight: 3}}]}]"
    )
    group = recipe.groups()[0]
    assert list(group.settings("weight", group.sources[0])) == [3, 2, 1]
    assert list(group.settings("weight")) == [2, 1]


@pytest.mark.parametrize(
    ("setting", "tensor", "t", "value"),
    [
        (0.5, "x", 0.0, 0.5),
        ([0, 1], "x", 0.25, 0.25),
        ([0, 0.5, 1], "x", 0.75, 0.75),
        ([0, 0.5, 1], "x", 1.0, 1.0),
        (["1e-3", 1], "x", 0.0, 0.001),
        ([True, False], "x", 0.4, True),
        ([{"filter": "mlp", "value": 0.7}, {"value": 0.5}], "layers.0.mlp.up", 0.0, 0.7),
        ([{"filter": "mlp", "value": [0, 1]}, {"value": 0.5}], "layers.0.mlp.up", 0.5, 0.5),
        ([{"filter": "mlp", "value": 0.7}, {"filter": "*", "value": 0.2}], "norm", 0.0, 0.2),
        ({"filter": "mlp", "value": 0.7}, "norm", 0.0, MISSING),
        ([], "x", 0.0, MISSING),
    ],
)
def test_a_setting_is_evaluated_as_mergekit_does(setting: Any, tensor: str, t: float, value: Any) -> None:
    found = evaluate(setting, tensor, t)
    assert found is value if value is MISSING else found == pytest.approx(value)


def test_a_filter_without_match_falls_through_to_the_next_scope() -> None:
    assert resolve([{"filter": "mlp", "value": 1}, 2], "norm") == 2
    assert resolve([{"filter": "mlp", "value": 1}], "norm", default=3) == 3


@pytest.mark.parametrize(
    ("setting", "complete"),
    [
        (0.5, True),
        ([0, 1], True),
        ([], False),
        ([{"filter": "a", "value": 1}], False),
        ([{"filter": "a", "value": 1}, {"value": 2}], True),
    ],
)
def test_whether_a_setting_covers_every_tensor(setting: Any, complete: bool) -> None:
    assert has_fallback(setting) is complete


@pytest.mark.parametrize(
    ("text", "code", "where"),
    [
        ("", "MM101", ""),
        ("[]", "MM101", ""),
        ("merge_method: linear", "MM105", ""),
        ("models: [{model: a}]", "MM106", "merge_method"),
        ("merge_method: [a]\nmodels: [{model: a}]", "MM108", "merge_method"),
        ("merge_method: linear\nmodels: a", "MM108", "models"),
        ("merge_method: linear\nmodels: [{model: 3}]", "MM109", "models[0].model"),
        ("merge_method: linear\nmodels: [{parameters: {weight: 1}}]", "MM108", "models[0]"),
        ("merge_method: linear\nmodels: [{model: a, parameters: 3}]", "MM108", "models[0].parameters"),
        ("merge_method: linear\nmodels: [{model: a}]\nparameters: {weight: [1, {value: 2}]}", "MM108", "parameters.weight"),
        ("merge_method: linear\nmodels: [{model: a}]\nparameters: {weight: {filter: a}}", "MM108", "parameters.weight"),
        ("merge_method: linear\nslices: [{sources: [{model: a}]}]", "MM108", "slices[0].sources[0].layer_range"),
        ("merge_method: linear\nslices: [{sources: []}]", "MM108", "slices[0]"),
        ("merge_method: linear\nmodules: {text: {}}", "MM105", "modules.text"),
        ("merge_method: linear\nmodels: [{model: a}]\ndtype: 16", "MM108", "dtype"),
        ("experts: [{positive_prompts: [a]}]\nbase_model: b", "MM108", "experts[0]"),
        ("experts: [{source_model: a}]", "MM108", "base_model"),
    ],
)
def test_what_mergekit_refuses_is_refused_with_its_place(text: str, code: str, where: str) -> None:
    with pytest.raises(Malformed) as raised:
        read_recipe(text)
    assert (raised.value.details["code"], raised.value.details["where"]) == (code, where)


def test_broken_yaml_names_the_line() -> None:
    with pytest.raises(Malformed, match="line 2"):
        read_recipe("merge_method: linear\n  models: [")


def test_several_documents_are_stages() -> None:
    text = "name: one\nmerge_method: linear\nmodels: [{model: a}]\n---\nmerge_method: linear\nmodels: [{model: one}]\n"
    recipe = read_recipe(text)
    assert (recipe.kind, [(s.name, s.method) for s in recipe.stages]) == ("multi", [("one", "linear"), (None, "linear")])
    assert (recipe.groups(), [str(r) for r in recipe.references()]) == ((), ["a", "one"])


def test_experts_make_a_mixture() -> None:
    recipe = read_recipe("base_model: b\nexperts: [{source_model: a, positive_prompts: [x]}]\ngate_mode: random")
    assert (recipe.kind, recipe.method, recipe.gate_mode, len(recipe.experts)) == ("moe", "", "random", 1)


def test_modules_are_groups_of_their_own() -> None:
    recipe = read_recipe(
        "merge_method: linear\nmodules: {text: {models: [{model: a}], parameters: {weight: 1}}}\nparameters: {x: 2}"
    )
    (group,) = recipe.groups()
    assert (group.where, group.module, group.scopes) == ("modules.text.models", "text", ({"weight": 1}, {"x": 2}))
    assert group.sources == (Source(model=ModelRef(base="a")),)


@pytest.mark.parametrize("path", sorted((Path(__file__).parent / "recipes" / "good").glob("*.yml")), ids=lambda p: p.stem)
def test_documented_forms_are_read(path: Path) -> None:
    recipe = read_recipe(path.read_text(encoding="utf-8"))
    assert recipe.references()
