"""`--fix` makes what can be corrected valid, says what it changed, and leaves the rest as findings."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from mcp_server.steps.validate import fix, rules, validate
from mcp_server.steps.validate.methods import merge_methods
from tests.checkpoints import cache_model, write_lora

SEEDS = Path(__file__).parent / "recipes" / "seeds"
TOKENS = ["<s>", "</s>", *(f"t{n}" for n in range(14))]

BASE = "which layers of the base go with a slice is written by its author"
WHICH = "from which of the two models t counts is not said"
UNFIXABLE = {
    "000-00-sliced-ties-with-ellipsis": ({"MM101"}, "the '...' inside the list is not YAML"),
    "001-00-structure": ({"MM202", "MM303"}, BASE),
    "001-01-sharded-no-base": ({"MM202", "MM204"}, f"{BASE}; no weight is given"),
    "001-02-two-adapter-ties": ({"MM202", "MM303"}, BASE),
    "001-03-ram-optimised": ({"MM202", "MM204", "MM303"}, f"{BASE}; no weight is given"),
    "001-04-weighted": ({"MM202", "MM303"}, BASE),
    "003-01-slerp": ({"MM201"}, WHICH),
    "003-04-slerp-again": ({"MM201"}, WHICH),
    "003-05-slerp-filters": ({"MM201"}, WHICH),
    "003-11-tokenizer-union": ({"MM204"}, "no weight is given"),
    "003-02-placeholders": ({"MM107", "MM111", "MM114"}, "the method, the dtype and the models are placeholders"),
    "003-12-weights-twice": ({"MM101"}, "two examples in one text: the key 'models' appears twice"),
    "003-13-density-thrice": ({"MM101"}, "three examples in one text: the key 'parameters' appears three times"),
    "003-15-different-architectures": ({"MM106"}, "a fragment without method; the models cannot be merged anyway"),
    "003-16-one-dominates": ({"MM106"}, "a fragment without method"),
}
"""Templates of the seed documents that stay invalid: what is found, and why nothing can correct it."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The models that the seed documents name, as small models of the real depth, and their adapters in the working folder."""
    cache, here = tmp_path_factory.mktemp("hub"), tmp_path_factory.mktemp("here")
    cache_model(cache, "unsloth/Llama-3.2-3B-Instruct", layers=28, tokens=TOKENS)
    for name in (
        "mistralai/Mistral-7B-v0.1", "teknium/OpenHermes-2.5-Mistral-7B", "WizardLM/WizardMath-7B-V1.1",
        "custom/specialized-model",
        "NousResearch/Nous-Hermes-2-Mistral-7B-DPO", "ajibawa-2023/Code-Mistral-7B", "model_a", "model_b", "base_model",
        "merged_middle", "mistralai/Mistral-7B", "one", "two", "base",
    ):  # fmt: skip
        cache_model(cache, name, layers=32, tokens=TOKENS)
    for name in ("adapter_1", "adapter_2", "persona_adapter", "agentic_adapter"):
        write_lora(here / name, "unsloth/Llama-3.2-3B-Instruct", layers=28)
    return cache, here


@pytest.mark.parametrize("seed", sorted(SEEDS.glob("*.yml")), ids=lambda path: path.stem)
def test_a_seed_template_becomes_valid_or_is_listed_with_why(
    seed: Path, place: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(place[0]))
    text = seed.read_text(encoding="utf-8")
    found = fix(text, folder=place[1])
    errors = {f.code for f in found.findings if f.severity == "error"}
    assert errors == UNFIXABLE.get(seed.stem, (set(), ""))[0], [(f.code, f.message) for f in found.findings]
    if not errors:
        assert validate(found.fixed_recipe or text, folder=place[1]).ok


def test_the_unfixable_list_names_seeds_that_exist() -> None:
    assert {path.stem for path in SEEDS.glob("*.yml")} >= set(UNFIXABLE)


def test_of_the_two_adapter_template_names_are_completed_and_nothing_is_added(
    place: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(place[0]))
    found = fix((SEEDS / "001-02-two-adapter-ties.yml").read_text(encoding="utf-8"), folder=place[1])
    base = "unsloth/Llama-3.2-3B-Instruct"
    sources = [f"{base}+{place[1] / name}" for name in ("persona_adapter", "agentic_adapter")]
    assert yaml.safe_load(found.fixed_recipe or "") == {
        "merge_method": "ties",
        "slices": [{"sources": [{"model": model, "layer_range": [0, 32]} for model in sources]}],
        "parameters": {"weight": 0.5, "density": 0.5},
        "base_model": base,
        "dtype": "float16",
    }
    assert len(found.changes) == 4


def test_a_valid_recipe_is_returned_untouched(place: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(place[0]))
    found = fix((SEEDS / "003-00-linear.yml").read_text(encoding="utf-8"), folder=place[1])
    assert (found.ok, found.fixed_recipe, found.changes) == (True, None, [])


CORRECTIONS = [
    ("merge_methd: linear\nmodels: [{model: model_a}, {model: model_b}]\nparameters: {weight: 1}", {"merge_method": "linear"}),
    ("merge_method: liner\nmodels: [{model: model_a}, {model: model_b}]\nparameters: {weight: 1}", {"merge_method": "linear"}),
    (
        "merge_method: linear\nmodels: [{model: model_a}, {model: model_b}]\nparameters: {weight: 1, dtype: bf16}",
        {"dtype": "bfloat16"},
    ),
    (
        "merge_method: ties\nbase_model: base_model\nmodels: [{model: model_a}]\nparameters: {weight: 1, densty: 0.4}",
        {"parameters": {"weight": 1, "density": 0.4}},
    ),
    (
        "merge_method: ties\nbase_model: base_model\nmodels: [{model: model_a}]\nparameters: {weight: 1, density: [0, 50, 100]}",
        {"parameters": {"weight": 1, "density": [0, 0.5, 1.0]}},
    ),
    (
        "merge_method: linear\nmodels: [{model: model_a}, {model: model_b}]\nparameters: {weight: 1}\ntokenizer_source: union",
        {"tokenizer": {"source": "union"}, "tokenizer_source": None},
    ),
]


@pytest.mark.parametrize(
    ("recipe", "wanted"), CORRECTIONS, ids=[case[0].split("\n")[0] + f" {n}" for n, case in enumerate(CORRECTIONS)]
)
def test_a_correction(recipe: str, wanted: dict[str, object], place: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(place[0]))
    found = fix(recipe, folder=place[1])
    document = yaml.safe_load(found.fixed_recipe or "")
    assert {key: document.get(key) for key in wanted} == wanted
    assert found.ok, found.findings
    assert found.changes


def test_values_behind_aliases_are_corrected_where_they_stand_if_all_who_share_them_agree() -> None:
    shared = (
        "merge_method: linear\nmodels: [{model: o/a, parameters: &p {wieght: 0.5}}, {model: o/b, parameters: *p}]\ndtype: bf16"
    )
    corrected = fix(shared)
    assert [entry["parameters"] for entry in yaml.safe_load(str(corrected.fixed_recipe))["models"]] == [{"weight": 0.5}] * 2
    assert "&p {weight: 0.5}" in str(corrected.fixed_recipe)
    unequal = (
        "merge_method: linear\nparameters: &p {weight: 1, dtype: bf16}\nmodels: [{model: o/a, parameters: *p}, {model: o/b}]"
    )
    assert fix(unequal).fixed_recipe is None
    fix("parameters: &p {density: [1, a]}\ngamma: *p\nnegative_prompts: *p\n")


LEFT = [
    "merge_method: linear\nmodels: [{model: one}, {model: two}]",
    "merge_method: karcher\nbase_model: base\nmodels: [{model: one}, {model: two}]",
    "merge_method: slerp\nmodels: [{model: one}, {model: two}]\nparameters: {t: 0.3}",
    "merge_method: slerp\nbase_model: base\nmodels: [{model: one}, {model: two}, {model: base}]\nparameters: {t: 0.3}",
    "merge_method: slerp\nbase_model: one\nmodels: [{model: one}, {model: two}]\nparameters: {t: 1.5}",
    "merge_method: slerp\nbase_model: one\nmodels: [{model: one}, {model: two}]\nparameters: {t: -50}",
    "merge_method: slerp\nbase_model: one\nmodels: [{model: one, parameters: {weight: 1}}, {model: two}]\nparameters: {t: 0.3}",
    "merge_method: ties\nbase_model: base\nmodels: [{model: one}]\nparameters: {weight: 1, density: [0.5, 50]}",
    "merge_method: ties\nbase_model: base\nmodels: [{model: one}]\nparameters: {weight: 1, lambda: 5}",
    "merge_method: ties\nbase_model: base\nmodels: [{model: one}]\nparameters: {weights: [0.5, 0.5]}",
    "merge_method: della\nbase_model: base\nmodels: [{model: one}]\nparameters: {weight: 1, density: 0.9}",
    "merge_method: breadcrumbs\nbase_model: base\nmodels: [{model: one}]\nparameters: {weight: 1, gamma: 1.5}",
    "merge_method: passthrough\nslices: [{sources: [{model: one, layer_range: [0, -1]}]}]",
    "merge_method: passthrough\nslices: [{sources: [{model: one, layer_range: [0, 64]}]}]",
    "merge_method: lerp\nmodels: [{model: one}, {model: two}]\nparameters: {t: 0.3, weight: 1}",
    "merge_method: ties\nbase_model: base\nparameters: {weight: 1, drop_rate: 0.3, density2: 0.5}\nmodels: [{model: one}]",
    "merge_method: linear\nparameters: {weight: 1}\nmodels: [{model: one, parameters: {normalize: false}}, {model: two}]",
    "merge_method: linear\nparameters: {weight: 1}\nmodels: [{model: one, dtype: float32}, {model: two}]",
    "merge_method: linear\nparameters: {weight: 1}\ntokenizer_source: base\ntokenizer: {source: union}\n"
    "models: [{model: one}, {model: two}]",
    "merge_method: linear\nparameters: {weight: 1}\ndtype: float8\nmodels: [{model: one}, {model: two}]",
]
"""A meaning that only the author knows: a weight, a base, a range, a method, a source, one of two settings."""


@pytest.mark.parametrize("recipe", LEFT)
def test_what_only_the_author_knows_is_left_as_it_is(
    recipe: str, place: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(place[0]))
    found = fix(recipe, folder=place[1])
    assert (found.fixed_recipe, found.changes) == (None, [])
    assert [f for f in found.findings if f.severity != "note"]


FLAGS = [(m.id, p.name) for m in merge_methods().values() for p in m.parameters if p.type == "bool"]


@pytest.mark.parametrize(("method", "flag"), FLAGS)
@pytest.mark.parametrize(
    "value", [1.0, 0.0, 1, 0, True, False, "true", [1.0, 1.0], [{"filter": "mlp", "value": 1.0}, {"value": 0}]]
)
def test_a_truth_value_may_be_a_number(method: str, flag: str, value: object) -> None:
    strategy = merge_methods()[method]
    document: dict[str, object] = {"merge_method": method, "parameters": {flag: value}}
    needed = {p.name: 0.5 for p in strategy.parameters if p.required}
    count = 1 if method == "passthrough" else 2
    document["models"] = [{"model": f"org/m{n}", "parameters": dict(needed)} for n in range(count)]
    found = fix(yaml.safe_dump(document))
    assert not [f for f in found.findings if f.code == "MM207"]
    assert found.fixed_recipe is None or yaml.safe_load(found.fixed_recipe)["parameters"][flag] == value


def test_one_missing_weight_among_others_is_not_invented(place: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(place[0]))
    recipe = "merge_method: linear\nmodels: [{model: model_a, parameters: {weight: 0.3}}, {model: model_b}]"
    found = fix(recipe, folder=place[1])
    assert (found.ok, found.fixed_recipe, [f.code for f in found.findings]) == (False, None, ["MM204"])


def test_every_rule_that_claims_to_be_fixable_has_a_correction() -> None:
    from mcp_server.steps.validate.fixes import FIXES, ORDER

    assert {code for code, rule in rules().items() if rule.fixable} == set(FIXES) == set(ORDER)


def test_stages_are_corrected_one_by_one(place: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(place[0]))
    recipe = (
        "name: first\nmerge_method: liner\nmodels: [{model: model_a}, {model: model_b}]\nparameters: {weight: 1}\n---\n"
        "merge_method: slerp\nbase_model: first\nmodels: [{model: model_a}]\nparameters: {t: 0.5}\n"
    )
    found = fix(recipe, folder=place[1])
    assert found.ok, found.findings
    assert found.changes == ["stages[0].merge_method: liner → linear"]
    assert [d["merge_method"] for d in yaml.safe_load_all(found.fixed_recipe or "")] == ["linear", "slerp"]
