"""Rewriting a recipe's references touches the references and nothing else."""

import pytest

from mcp_server.formats.recipe import ModelRef, read_recipe
from mcp_server.formats.recipe.rewrite import rewrite_refs

RECIPE = """\
# a comment
merge_method: ties
base_model: base
models:
  - model: base+adapter   # folded
    parameters: {weight: 0.5}
  - model: {model: {path: base, revision: v1}, lora: {path: other}}
    parameters: {weight: [0.1, 0.9]}
tokenizer: {source: union, tokens: {"<x>": {source: base}}}
parameters: {model: kept, source: kept}
"""


def absolute(ref: ModelRef) -> ModelRef:
    return ref.model_copy(update={"base": f"/m/{ref.base}", "adapter": f"/m/{ref.adapter}" if ref.adapter else None})


def test_a_recipe_that_needs_no_change_is_the_same_text():
    assert rewrite_refs(RECIPE, lambda ref: ref) == RECIPE


def test_every_reference_is_rewritten_and_parameters_are_not():
    found = read_recipe(rewrite_refs(RECIPE, absolute))
    assert [str(ref) for ref in found.references()] == ["/m/base", "/m/base+/m/adapter", "/m/base@v1+/m/other"]
    before = read_recipe(RECIPE)
    assert [s.parameters for s in found.models] == [s.parameters for s in before.models]
    assert found.parameters == {"model": "kept", "source": "kept"}
    assert found.tokenizer["source"] == "union"


@pytest.mark.parametrize("word", ["union", "base"])
def test_the_tokenizers_own_words_are_no_references(word):
    text = f"merge_method: linear\nmodels:\n- model: /m/a\n  parameters: {{weight: 1}}\ntokenizer_source: {word}\n"
    assert rewrite_refs(text, absolute).endswith(f"tokenizer_source: {word}\n")


def test_a_tokenizer_taken_from_a_model_follows_that_model():
    text = "merge_method: linear\nmodels:\n- model: a\n  parameters: {weight: 1}\ntokenizer_source: a\n"
    assert read_recipe(rewrite_refs(text, absolute)).tokenizer_source == "/m/a"


def test_the_name_of_an_earlier_stage_is_no_path():
    text = (
        "name: first\nmerge_method: linear\nmodels: [{model: a, parameters: {weight: 1}}]\n---\n"
        "merge_method: linear\nmodels: [{model: first, parameters: {weight: 1}}, {model: b, parameters: {weight: 1}}]\n"
    )
    assert {str(ref) for ref in read_recipe(rewrite_refs(text, absolute)).references()} == {"/m/a", "first", "/m/b"}


def test_experts_are_references_and_their_prompts_are_not():
    text = "base_model: a\nexperts:\n- {source_model: b, positive_prompts: [model, b]}\n"
    found = read_recipe(rewrite_refs(text, absolute))
    assert [str(ref) for ref in found.references()] == ["/m/a", "/m/b"]
    assert found.experts[0].positive_prompts == ("model", "b")


def test_an_overridden_architecture_stays_overridden():
    text = (
        "merge_method: linear\nmodels:\n"
        "- model: {model: {path: a}, override_architecture: LlamaForCausalLM}\n  parameters: {weight: 1}\n"
    )
    ref = read_recipe(rewrite_refs(text, absolute)).references()[0]
    assert (ref.base, ref.override_architecture) == ("/m/a", "LlamaForCausalLM")
