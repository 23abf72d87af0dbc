"""Slices of real classes: the output runs as the source does with its layers in that order, or is refused by its reason.

transformers is the oracle. The layers of a loaded source are taken, repeated and put in order in memory, with the settings of
single layers written out by hand where the class reads them from its config; the same tokens go through both. Sequences are
longer than the sliding windows, so that a layer with another's settings gives other numbers.
"""

from __future__ import annotations

import copy
import json
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from mcp_server.engine.merge import merge
from mcp_server.engine.request import Request
from mcp_server.errors import MergingError

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.filterwarnings("ignore")
SIZE = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 6, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 8, "vocab_size": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "max_position_embeddings": 64,
}  # fmt: skip
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16}
S, F = "sliding_attention", "full_attention"
IDS = [[3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3]]
Kept = list[tuple[str, int]]


@dataclass(frozen=True)
class Slices:
    """`slices`: of which model ("a" or "b") which layers. `config` is what the output's layers read, `refused` a reason."""

    kind: str
    slices: list[tuple[str, int, int]]
    settings: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    refused: str = ""

    @property
    def kept(self) -> Kept:
        return [(which, layer) for which, start, end in self.slices for layer in range(start, end)]


def one(*ranges: tuple[int, int]) -> list[tuple[str, int, int]]:
    return [("a", start, end) for start, end in ranges]


PATTERN = [S, S, F, S, S, F]
RECIPES = {
    "fewer layers": Slices("Llama", one((0, 2), (4, 6))),
    "frankenmerge of two": Slices("Llama", [("a", 0, 4), ("b", 2, 6)]),
    "frankenmerge by turns": Slices("Llama", [("a", 0, 1), ("b", 0, 1), ("a", 1, 2), ("b", 1, 2), ("a", 2, 3)]),
    "layers twice": Slices("Llama", one((0, 3), (1, 4), (3, 6))),
    "one layer": Slices("Llama", one((3, 4))),
    "one layer, four times": Slices("Llama", one((3, 4), (3, 4), (3, 4), (3, 4))),
    "reversed": Slices("Llama", one((5, 6), (4, 5), (3, 4), (2, 3), (1, 2), (0, 1))),
    "biases": Slices("Qwen2", one((0, 2), (4, 6))),
    "norms of queries and keys": Slices("Qwen3", one((1, 3), (1, 3))),
    "windows of a list": Slices("Qwen3", one((0, 1), (2, 4), (5, 6)), {
        "use_sliding_window": True, "sliding_window": 4, "layer_types": PATTERN}, {"layer_types": [S, F, S, F]}),
    "windows from a layer on": Slices("Qwen2", one((2, 6)), {
        "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 4, "layer_types": [F] * 4 + [S] * 2},
        {"layer_types": [F, F, S, S]}),
    "windows by turns": Slices("Gemma2", one((0, 2), (4, 6)), {"sliding_window": 4}, {"layer_types": [S, F, S, F]}),
    "windows by turns, out of step": Slices("Gemma2", one((1, 3), (4, 6)), {"sliding_window": 4}, {"layer_types": [F, S, S, F]}),
    "windows of a pattern": Slices("Gemma3", one((0, 3), (3, 6), (5, 6)), {
        "sliding_window": 4, "layer_types": PATTERN}, {"layer_types": [S, S, F, S, S, F, F]}),
    "windows and rotary bases": Slices("Gemma3", one((5, 6), (0, 1)), {"sliding_window": 4, "layer_types": PATTERN}, {
        "layer_types": [F, S]}),
    "layers without positions": Slices("SmolLM3", one((0, 1), (3, 6)), {}, {"no_rope_layers": [1, 0, 1, 1]}),
    "windows and sinks": Slices("GptOss", one((0, 1), (3, 6)), {
        "sliding_window": 4, "num_local_experts": 4, "num_experts_per_tok": 2}, {"layer_types": [S, F, S, F]}),
    "experts in every layer": Slices("Qwen3Moe", one((0, 2), (4, 6)), MOE),
    "experts in every second layer": Slices("Qwen3Moe", one((0, 2), (4, 6)), MOE | {"decoder_sparse_step": 2}),
    "experts out of step": Slices("Qwen3Moe", one((1, 4)), MOE | {"decoder_sparse_step": 2}, refused="decoder_sparse_step"),
    "dense layers by number": Slices("Qwen3Moe", one((1, 4)), MOE | {"mlp_only_layers": [0, 2]}),
    "dense layers first": Slices("DeepseekV3", one((0, 1), (1, 3), (4, 6)), {
        "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "moe_intermediate_size": 16,
        "first_k_dense_replace": 2, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8,
        "v_head_dim": 8, "num_key_value_heads": 4}),
    "dense layers last": Slices("DeepseekV3", one((3, 5), (0, 2)), {
        "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "moe_intermediate_size": 16,
        "first_k_dense_replace": 2, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8,
        "v_head_dim": 8, "num_key_value_heads": 4}, refused="first_k_dense_replace"),
    "states and attention out of step": Slices("Jamba", one((0, 2)), {
        "attn_layer_period": 3, "attn_layer_offset": 2, "expert_layer_period": 2, "num_experts": 4, "use_mamba_kernels": False,
        "mamba_d_state": 8, "mamba_dt_rank": 4}),
    "states and attention, offset gone": Slices("Jamba", one((2, 4)), {
        "attn_layer_period": 3, "attn_layer_offset": 2, "expert_layer_period": 2, "num_experts": 4, "use_mamba_kernels": False,
        "mamba_d_state": 8, "mamba_dt_rank": 4}, refused="attn_layer"),
    "states alone": Slices("FalconMamba", one((0, 1), (3, 6)), {"state_size": 8, "time_step_rank": 4}),
    "scales by number": Slices("GPT2", one((0, 2), (4, 6)), {
        "n_layer": 6, "n_embd": 32, "n_head": 4, "scale_attn_by_inverse_layer_idx": True}, refused="scale_attn_by_inverse"),
    "Conv1D layers": Slices("GPT2", one((0, 2), (3, 6)), {"n_layer": 6, "n_embd": 32, "n_head": 4}),
    "fused matrices": Slices("GPTNeoX", one((0, 2), (3, 6))),
    "a lambda by number": Slices("DiffLlama", one((0, 2), (3, 6)), refused="lambda_init"),
    "past the end": Slices("Llama", one((0, 3), (4, 9)), refused="layer"),
    "an encoder and a decoder": Slices("Bart", one((0, 1)), {
        "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48,
        "encoder_attention_heads": 4, "decoder_attention_heads": 4}, refused="several stacks"),
}  # fmt: skip
QUICK = {"frankenmerge by turns", "windows of a pattern", "layers without positions", "experts out of step", "dense layers first"}


def model_of(recipe: Slices, seed: int) -> Any:
    name = {"Gemma3": "Gemma3TextConfig"}.get(recipe.kind, f"{recipe.kind}Config")
    head = {"GPT2": "GPT2LMHeadModel", "Bart": "BartForConditionalGeneration"}.get(recipe.kind, f"{recipe.kind}ForCausalLM")
    torch.manual_seed(0)
    made = getattr(transformers, head)(getattr(transformers, name)(**(SIZE | recipe.settings)))
    torch.manual_seed(seed)
    with torch.no_grad():
        for value in made.parameters():
            value.add_(torch.randn_like(value) * 0.1)
    return made.eval()


def logits(model: Any) -> Any:
    with torch.no_grad():
        return model(torch.tensor(IDS), use_cache=False).logits


def in_order(models: dict[str, Any], recipe: Slices) -> Any:
    """The first model with these layers, in memory; what comes after the layers is the last one's."""
    model = copy.deepcopy(models[recipe.kept[0][0]])
    inner = model.base_model
    stack = next(name for name in ("layers", "h") if hasattr(inner, name))
    new = [copy.deepcopy(getattr(models[which].base_model, stack)[layer]) for which, layer in recipe.kept]
    setattr(inner, stack, torch.nn.ModuleList(new))
    if recipe.kept[-1][0] != recipe.kept[0][0]:
        last = models[recipe.kept[-1][0]]
        inner.norm, model.lm_head = copy.deepcopy(last.base_model.norm), copy.deepcopy(last.lm_head)
    for key, value in ({"num_hidden_layers": len(new)} | recipe.config).items():
        setattr(model.config, key, value)
    return model


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in RECIPES])
def test_a_slice_recipe_runs_as_the_layers_in_that_order(name: str, tmp_path: Path) -> None:
    recipe = RECIPES[name]
    models = {which: model_of(recipe, seed) for seed, which in enumerate("ab")}
    for which, model in models.items():
        model.save_pretrained(tmp_path / which)
    slices = [{"sources": [{"model": str(tmp_path / which), "layer_range": [start, end]}]} for which, start, end in recipe.slices]
    text = json.dumps({"merge_method": "passthrough", "slices": slices, "dtype": "float32"})
    request = Request(text, tmp_path / "out", tmp_path / "journal", threads=1)
    if recipe.refused:
        with pytest.raises(MergingError, match=recipe.refused):
            merge(request, lambda *_: None)
        return
    merge(request, lambda *_: None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made, report = type(models["a"]).from_pretrained(tmp_path / "out", output_loading_info=True)
    assert {key: list(value) for key, value in report.items() if value} == {}
    wanted = logits(in_order(models, recipe))
    torch.testing.assert_close(logits(made.eval()), wanted, atol=1e-5, rtol=1e-4)
    if recipe.kept != [("a", layer) for layer in range(6)]:
        assert not torch.allclose(wanted, logits(models["a"]), atol=1e-3)
