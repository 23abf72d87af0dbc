"""Recipes as people publish them: we read the same weights as mergekit's own reader, and no correction changes a meaning."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from mcp_server.formats.recipe import MISSING, as_flag, as_number, read_recipe, resolve
from mcp_server.steps.validate import fix, validate
from mcp_server.steps.validate.methods import merge_methods
from tests.steps.public_recipes import LAYERS, Case, mistaken, sound

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning")]  # imports mergekit and torch

TENSORS = (
    "model.embed_tokens.weight",
    "model.layers.1.self_attn.q_proj.weight",
    "model.layers.1.mlp.up_proj.weight",
    "lm_head.weight",
)
POSITIONS = (0.0, 1 / 3, 2 / 3, 1.0)
Meaning = dict[tuple[str, str, float], Any]


def theirs(text: str, monkeypatch: pytest.MonkeyPatch) -> Meaning | str:
    """What mergekit's configuration, planner and resolver give for each tensor, position and model; or their refusal."""
    from mergekit import merge_methods as methods
    from mergekit.common import ModelReference
    from mergekit.config import ConfigReader, MergeConfiguration
    from mergekit.parameter_resolver import resolve_parameters
    from mergekit.plan import MergePlanner

    monkeypatch.setattr(ModelReference, "config", lambda *_, **__: None)
    planner: Any = MergePlanner.__new__(MergePlanner)
    module = SimpleNamespace(architecture=SimpleNamespace(num_layers=lambda _: LAYERS))
    try:
        planner.config = config = MergeConfiguration.model_validate(yaml.safe_load(text))
        planner._method = methods.get(config.merge_method)
        planner.arch_info, planner.options = (
            SimpleNamespace(modules={"default": module}),
            SimpleNamespace(trust_remote_code=False),
        )
        planner.normalize_config()
        found: Meaning = {}
        for number, part in enumerate(config.modules["default"].slices):
            reader = ConfigReader(config=config, slice_out=part, t=0)
            models = [source.model for source in part.sources]
            for tensor in TENSORS:
                for t in POSITIONS:
                    shared, each = resolve_parameters(
                        planner._method.spec, tensor_name=tensor, inputs=dict.fromkeys(models, tensor),
                        sources=reader.parameter_sources, base_model=reader.base_model, t=t,
                    )  # fmt: skip
                    found[f"slice {number}", tensor, t] = (shared, {str(model): values for model, values in each.items()})
    except (RuntimeError, ValueError, KeyError, TypeError) as refusal:  # pydantic's is a ValueError
        return f"{type(refusal).__name__}: {refusal}"
    return found


def ours(text: str) -> Meaning:
    recipe = read_recipe(text)
    method = merge_methods()[str(recipe.method)]
    convert = {"bool": as_flag, "float": as_number, "int": as_number, "str": str}

    def values(scope: str, group: Any, source: Any, tensor: str, t: float) -> dict[str, Any]:
        return {
            p.name: resolve(group.settings(p.name, source), tensor, t, MISSING if p.required else p.default, convert[p.type])
            for p in method.parameters
            if p.scope == scope
        }

    found: Meaning = {}
    for number, group in enumerate(recipe.groups()):
        counts = method.inputs.base == "ignored"
        for tensor in TENSORS:
            for t in POSITIONS:
                shared = values("shared", group, None, tensor, t)
                each = {
                    str(s.model): values("source", group, s, tensor, t) if counts or s.model != group.base else {}
                    for s in group.sources
                }
                found[f"slice {number}", tensor, t] = (shared, each)
    return found


def same(a: Any, b: Any) -> bool:
    if isinstance(a, (dict, tuple)):
        pairs = a.items() if isinstance(a, dict) else enumerate(a)
        return type(a) is type(b) and len(a) == len(b) and all(same(value, b[key]) for key, value in pairs)
    if isinstance(a, (int, float)) and isinstance(b, (int, float)):
        return math.isclose(a, b, rel_tol=1e-12, abs_tol=1e-15)
    return bool(a == b)


SOUND, MISTAKEN = list(sound()), list(mistaken())


def test_there_are_more_than_two_hundred() -> None:
    assert len(SOUND) >= 120
    assert len(SOUND) + len(MISTAKEN) >= 200


@pytest.mark.parametrize("case", SOUND, ids=lambda case: case.name)
def test_a_recipe_is_read_as_mergekit_reads_it(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = theirs(case.text, monkeypatch)
    found = validate(case.text)
    if isinstance(expected, str):
        assert not found.ok, expected
        return
    assert found.ok, [(f.code, f.message) for f in found.findings if f.severity == "error"]
    assert same(ours(case.text), expected)


@pytest.mark.parametrize("case", SOUND, ids=lambda case: case.name)
def test_a_sound_recipe_is_not_touched(case: Case) -> None:
    found = fix(case.text)
    assert (found.fixed_recipe, found.changes) == (None, [])


@pytest.mark.parametrize("case", MISTAKEN, ids=lambda case: case.name)
def test_a_correction_gives_what_was_meant_or_nothing(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    found = fix(case.text)
    if case.meant is None:
        assert found.fixed_recipe is None, found.changes
        refused = theirs(case.text, monkeypatch)
        if isinstance(refused, str):
            assert not found.ok, refused
        return
    meant = yaml.safe_dump(case.meant, sort_keys=False)
    assert found.fixed_recipe is not None
    assert found.fixed_recipe.startswith("# found on the hub\n")
    expected = theirs(meant, monkeypatch)
    assert not isinstance(expected, str)
    assert same(theirs(found.fixed_recipe, monkeypatch), expected)
    assert yaml.safe_load(found.fixed_recipe)["dtype"] == "bfloat16"


INPUTS = {"MM201", "MM202", "MM203", "MM213"}


@pytest.mark.parametrize("method", sorted(merge_methods()))
@pytest.mark.parametrize("names", ["", "a", "ab", "abc", "abcd", "aab"])
@pytest.mark.parametrize("base", ["", "a", "z"])
def test_as_many_inputs_are_taken_as_mergekit_takes(method: str, names: str, base: str) -> None:
    from mergekit import merge_methods as methods

    sources = [{"model": f"org/{name}", "layer_range": [0, 4], "parameters": {"weight": 1}} for name in names]
    document = {"merge_method": method, "slices": [{"sources": sources}]} | ({"base_model": f"org/{base}"} if base else {})
    try:
        methods.get(method).validate_inputs([f"org/{name}" for name in names], f"org/{base}" if base else None)
        refused = ""
    except ValueError as error:
        refused = str(error)
    found = [f.message for f in validate(yaml.safe_dump(document)).findings if f.code in INPUTS]
    if names:  # a slice without sources is refused by its form
        assert bool(found) is bool(refused), (refused, found)
