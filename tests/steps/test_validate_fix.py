"""`--fix` makes what can be corrected valid, says what it changed, and leaves the rest as findings."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from mcp_server.steps.validate import fix, rules, validate
from tests.checkpoints import cache_model, write_lora

SEEDS = Path(__file__).parent / "recipes" / "seeds"
TOKENS = ["<s>", "</s>", *(f"t{n}" for n in range(14))]

UNFIXABLE = {
    "000-00-sliced-ties-with-ellipsis": ({"MM101"}, "the '...' inside the list is not YAML"),
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
        "merged_middle", "mistralai/Mistral-7B",
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


def test_the_two_adapter_template_is_corrected_in_full(place: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(place[0]))
    found = fix((SEEDS / "001-02-two-adapter-ties.yml").read_text(encoding="utf-8"), folder=place[1])
    base = "unsloth/Llama-3.2-3B-Instruct"
    sources = [f"{base}+{place[1] / name}" for name in ("persona_adapter", "agentic_adapter")] + [base]
    assert yaml.safe_load(found.fixed_recipe or "") == {
        "merge_method": "ties",
        "slices": [{"sources": [{"model": model, "layer_range": [0, 28]} for model in sources]}],
        "parameters": {"weight": 0.5, "density": 0.5},
        "base_model": base,
        "dtype": "float16",
    }
    assert found.ok
    assert len(found.changes) == 8


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
    ("merge_method: linear\nmodels: [{model: model_a}, {model: model_b}]", {"parameters": {"weight": 1.0}}),
    ("merge_method: karcher\nbase_model: base_model\nmodels: [{model: model_a}, {model: model_b}]", {"base_model": None}),
    (
        "merge_method: slerp\nmodels: [{model: model_a}, {model: model_b}]\nparameters: {t: 1.5}",
        {"base_model": "model_a", "parameters": {"t": 1}},
    ),
    (
        "merge_method: ties\nbase_model: base_model\nmodels: [{model: model_a}]\nparameters: {weight: 1, densty: 0.4, t: 1}",
        {"parameters": {"weight": 1, "density": 0.4}},
    ),
    (
        "merge_method: della\nbase_model: base_model\nmodels: [{model: model_a}]\nparameters: {weight: 1, density: 0.9}",
        {"parameters": {"weight": 1, "density": 0.9, "epsilon": 0.09}},
    ),
    (
        "merge_method: linear\nmodels: [{model: model_a}, {model: model_b}]\nparameters: {weight: 1}\ntokenizer_source: union",
        {"tokenizer": {"source": "union"}, "tokenizer_source": None},
    ),
    (
        "merge_method: passthrough\nslices: [{sources: [{model: model_a, layer_range: [0, -1]}]}]",
        {"slices": [{"sources": [{"model": "model_a", "layer_range": [0, 32]}]}]},
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


def test_values_behind_aliases_are_corrected_one_by_one_and_never_hold_themselves() -> None:
    shared = (
        "merge_method: linear\nmodels: [{model: o/a, parameters: &p {wieght: 0.5}}, {model: o/b, parameters: *p}]\ndtype: bf16"
    )
    corrected = fix(shared)
    assert [entry["parameters"] for entry in yaml.safe_load(str(corrected.fixed_recipe))["models"]] == [{"weight": 0.5}] * 2
    assert "&" not in str(corrected.fixed_recipe)
    fix("parameters: &p {density: [1, a]}\ngamma: *p\nnegative_prompts: *p\n")


def test_parameters_with_nothing_behind_them_make_room_for_a_correction() -> None:
    recipe = "merge_method: linear\nmodels: [{model: o/a}, {model: o/b}]\nparameters:\n"
    assert yaml.safe_load(str(fix(recipe).fixed_recipe))["parameters"] == {"weight": 1.0}


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
