#!/usr/bin/env python3
"""Every form in which an adapter is saved: each kind and option of PEFT, other tools' layouts, and files that are damaged.

usage: adapter_forms.py [--only WORD...] [--rows FILE]

PEFT makes an adapter of noise on a tiny model and saves it; a form may then be written differently, as other versions and tools
do. `loads`: PEFT loads the very files, and its merge of them is the answer. `same`: the files say the same in other words, and
PEFT's merge of the adapter before it was rewritten is the answer. Any other text is a pattern of the reason by which such a form
has to be refused, by validate and merge alike.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import peft
import torch
import transformers

from benchmarks.matrix.adapters import judge, outputs, recipe_of, trained
from benchmarks.matrix.form_edits import (
    add,
    both_names,
    cast,
    config,
    doubled,
    drop,
    elsewhere,
    fill,
    first_only,
    kohya,
    mlx,
    pickled,
    rename,
    saved_under,
    shard,
    unnamed,
)
from benchmarks.matrix.forms import GPT2, LOADS, SAME, SIZE, Verdict, row, run, tried
from benchmarks.matrix.run import tensors

ATTENTION = ["q_proj", "v_proj"]
NO_WEIGHT = "changes no weight"
NO_FORMULA = r"is a \w+ adapter; LORA"


@dataclass(frozen=True)
class Form:
    """`kind` and `settings` make the adapter, `edit` rewrites its folder, `expect` says what is right (see above)."""

    expect: str = LOADS
    settings: dict[str, Any] = field(default_factory=dict)
    base: str = "llama"
    kind: str = "LoraConfig"
    edit: Callable[[Path], None] | None = None


def lora(expect: str = LOADS, base: str = "llama", edit: Callable[[Path], None] | None = None, **settings: Any) -> Form:
    plain = {"r": 4, "lora_alpha": 6, "target_modules": ATTENTION if base in ("llama", "tied", "moe") else ["c_attn"]}
    return Form(expect, plain | settings, base, "LoraConfig", edit)


def edited(edit: Callable[[Path], None], expect: str = SAME, **settings: Any) -> Form:
    return lora(expect, edit=edit, **settings)


FORMS: dict[str, Form] = {
    # options of LoRA
    "plain": lora(),
    "rank 1": lora(r=1),
    "rank above the width": lora(r=40),
    "rank-stabilised": lora(use_rslora=True),
    "rank pattern, plain": lora(rank_pattern={"q_proj": 2}),
    "rank pattern, regex": lora(rank_pattern={r".*\.0\..*q_proj": 2, "v_proj": 3}),
    "rank pattern, anchored": lora(rank_pattern={r"^model.layers.1.self_attn.q_proj": 2}),
    "alpha pattern, plain": lora(alpha_pattern={"v_proj": 11}),
    "alpha pattern, regex": lora(alpha_pattern={r"layers\.1\.self_attn\.(q|v)_proj": 11}),
    "both patterns, rank-stabilised": lora(use_rslora=True, rank_pattern={"q_proj": 2}, alpha_pattern={"q_proj": 9}),
    "layers to transform": lora(layers_to_transform=[1]),
    "layers to transform, one": lora(layers_to_transform=0),
    "layers pattern": lora(layers_to_transform=[0], layers_pattern="layers"),
    "layers pattern, several": lora(layers_to_transform=[0], layers_pattern=["layers", "h"]),
    "exclude by name": lora(target_modules="all-linear", exclude_modules=["k_proj"]),
    "exclude by regex": lora(target_modules="all-linear", exclude_modules=r".*mlp.*"),
    "targets by regex": lora(target_modules=r".*\.(1)\.mlp\.(up|down)_proj"),
    "targets by full name": lora(target_modules=["model.layers.0.mlp.up_proj"]),
    "all linear": lora(target_modules="all-linear"),
    "head saved whole": lora(modules_to_save=["lm_head"]),
    "embedding saved whole": lora(modules_to_save=["embed_tokens"]),
    "embedding and head saved whole": lora(modules_to_save=["embed_tokens", "lm_head"]),
    "norms saved whole": lora(modules_to_save=["input_layernorm", "norm"]),
    "head saved whole, tied": lora(base="tied", modules_to_save=["lm_head"]),
    "embedding saved whole, tied": lora(base="tied", modules_to_save=["embed_tokens"]),
    "embedding saved whole, kept tied": lora(base="tied", modules_to_save=["embed_tokens"], ensure_weight_tying=True),
    "classification head": lora(base="classifier", task_type="SEQ_CLS", target_modules=ATTENTION),
    "bias all": lora(bias="all"),
    "bias of LoRA only": lora(bias="lora_only"),
    "bias all and head saved": lora(bias="all", modules_to_save=["lm_head"]),
    "fan in fan out on linear layers": lora(fan_in_fan_out=True),
    "GPT-2": lora(base="gpt2", fan_in_fan_out=True),
    "GPT-2, flag missing": lora(base="gpt2"),
    "GPT-2, mixed layers": lora(base="gpt2-untied", target_modules=["c_attn", "c_proj", "lm_head"]),
    "GPT-2, all": lora(base="gpt2", target_modules="all-linear", bias="all"),
    "GPT-2, base without prefix": lora(base="gpt2-bare"),
    "GPT-2, embedding alone, base without prefix": lora(base="gpt2-bare", target_modules=["wte"]),
    "trained tokens": lora(trainable_token_indices=[3, 7]),
    "trained tokens by module": lora(trainable_token_indices={"embed_tokens": [9, 2]}),
    "trained tokens, tied": lora(base="tied", trainable_token_indices=[3, 7]),
    "trained tokens, last": lora(trainable_token_indices=[63]),
    "experts": lora(base="moe", target_modules=[], target_parameters=["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]),
    "experts, one stack": lora(base="moe", target_modules=[], target_parameters=["mlp.experts.down_proj"]),
    "experts beside modules": lora(base="moe", target_parameters=["mlp.experts.gate_up_proj"]),
    "a parameter of a linear layer": lora(target_modules=[], target_parameters=["q_proj.weight"]),
    "bias of B": lora("lora_bias", lora_bias=True),
    "DoRA": lora(use_dora=True),
    "DoRA, rank-stabilised, patterns": lora(use_dora=True, use_rslora=True, rank_pattern={"q_proj": 2}),
    "DoRA, GPT-2": lora(base="gpt2", use_dora=True),
    "DoRA, head saved": lora(use_dora=True, modules_to_save=["lm_head"]),
    "DoRA, embedding": lora(use_dora=True, target_modules=["embed_tokens"]),
    "DoRA, all biases": lora(use_dora=True, bias="all"),
    "DoRA, some layers": lora(use_dora=True, layers_to_transform=[1]),
    "DoRA, head": lora(use_dora=True, target_modules=["lm_head"]),
    "DoRA, tied embedding": lora(base="tied", use_dora=True, target_modules=["embed_tokens", "q_proj"]),
    "DoRA, tied head": lora(base="tied", use_dora=True, target_modules=["lm_head"]),
    "DoRA, trained tokens": lora(use_dora=True, trainable_token_indices=[3, 7]),
    "trained tokens, kept tied": lora(base="tied", trainable_token_indices=[3, 7], ensure_weight_tying=True),
    "trained tokens of the head": lora(trainable_token_indices={"lm_head": [3, 7]}),
    "trained tokens of both ends": lora(trainable_token_indices={"lm_head": [3, 7], "embed_tokens": [1, 2]}),
    "trained tokens, GPT-2": lora(base="gpt2", trainable_token_indices={"wte": [3]}, target_modules=["c_fc"]),
    "experts, rank-stabilised, patterns": lora(
        base="moe", use_rslora=True, target_modules=[], rank_pattern={"gate_up_proj": 2}, alpha_pattern={"down_proj": 9},
        target_parameters=["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
    ),
    "experts of one layer": lora(base="moe", target_modules=[], target_parameters=["1.mlp.experts.gate_up_proj"]),
    "a router as a parameter": lora(base="moe", target_modules=[], target_parameters=["mlp.gate.weight"]),
    "a parameter beside modules": lora(target_modules=["v_proj"], target_parameters=["q_proj.weight"]),
    "embedding as a parameter": lora(target_modules=[], target_parameters=["embed_tokens.weight"]),
    "head as a parameter": lora(target_modules=[], target_parameters=["lm_head.weight"]),
    "head as a parameter, tied": lora(base="tied", target_modules=[], target_parameters=["lm_head.weight"]),
    "embedding saved, head adapted": lora(modules_to_save=["embed_tokens"], target_modules=["lm_head", "q_proj"]),
    "embedding saved, head adapted, tied": lora(
        base="tied", modules_to_save=["embed_tokens"], target_modules=["lm_head", "q_proj"]
    ),
    "embedding and head saved, tied": lora(base="tied", modules_to_save=["embed_tokens", "lm_head"]),
    "embedding and head adapted, tied": lora(base="tied", target_modules=["embed_tokens", "lm_head"]),
    "a block saved whole": lora(target_modules=["v_proj"], modules_to_save=["mlp"]),
    "a block of one layer saved whole": lora(target_modules=["up_proj"], modules_to_save=["layers.0.self_attn"]),
    "positions, GPT-2": lora(base="gpt2", target_modules=["wpe"]),
    "last norm saved, GPT-2": lora(base="gpt2", modules_to_save=["ln_f"]),
    "head of a classifier": lora(base="classifier", target_modules=["score"]),
    "embedding": lora(target_modules=["embed_tokens"]),
    "head": lora(target_modules=["lm_head"]),
    "embedding, tied": lora(base="tied", target_modules=["embed_tokens"]),
    "head, tied": lora(base="tied", target_modules=["lm_head"]),
    "embedding, kept tied": lora(base="tied", target_modules=["embed_tokens", "q_proj"], ensure_weight_tying=True),
    "start gaussian": lora(init_lora_weights="gaussian"),
    "start orthogonal": lora(init_lora_weights="orthogonal"),
    "start olora": lora("changes the base weights", init_lora_weights="olora"),
    "start pissa": lora("changes the base weights", init_lora_weights="pissa"),
    "start pissa by iteration": lora("changes the base weights", init_lora_weights="pissa_niter_4"),
    "start corda": edited(config(init_lora_weights="corda"), "changes the base weights"),
    "start loftq": edited(config(init_lora_weights="loftq"), "changes the base weights"),
    "start lora_ga": edited(config(init_lora_weights="lora_ga"), "changes the base weights"),
    "start eva": edited(config(init_lora_weights="eva"), SAME),
    "start false": edited(config(init_lora_weights=False), SAME),
    "layer replication": lora("layer_replication", layer_replication=[[0, 2], [1, 2]]),
    "activated": lora("invocation tokens", alora_invocation_tokens=[5, 6], task_type="CAUSAL_LM"),
    "quantisation-aware": edited(config(use_qalora=True, qalora_group_size=16), "use_qalora"),
    "block-diagonal": edited(config(use_bdlora={"nblocks": 2}), "use_bdlora"),
    "router of adapters": edited(config(arrow_config={"top_k": 2}), "arrow_config"),
    "dropout": lora(lora_dropout=0.5),
    "two layers of one name": lora(target_modules=["down_proj", "up_proj", "gate_proj", "o_proj"]),
    # other kinds
    "LoHa": Form(kind="LoHaConfig", settings={"r": 4, "alpha": 6, "target_modules": ATTENTION}),
    "LoHa with patterns": Form(
        kind="LoHaConfig", settings={"r": 4, "alpha": 6, "target_modules": ATTENTION, "rank_pattern": {"q_proj": 2}}
    ),
    "LoKr": Form(kind="LoKrConfig", settings={"r": 2, "alpha": 6, "target_modules": ATTENTION}),
    "LoKr, both sides": Form(
        kind="LoKrConfig", settings={"r": 2, "alpha": 6, "target_modules": ATTENTION, "decompose_both": True}
    ),
    "LoKr, factor": Form(
        kind="LoKrConfig", settings={"r": 2, "alpha": 3, "target_modules": ["up_proj"], "decompose_factor": 4}
    ),
    "LoKr, rank-stabilised": Form(
        kind="LoKrConfig", settings={"r": 4, "alpha": 6, "target_modules": ATTENTION, "rank_dropout_scale": True}
    ),
    "IA3": Form(kind="IA3Config", settings={"target_modules": ["k_proj", "down_proj"], "feedforward_modules": ["down_proj"]}),
    "IA3, attention": Form(kind="IA3Config", settings={"target_modules": ["k_proj"], "feedforward_modules": []}),
    "IA3 and head": Form(
        kind="IA3Config", settings={"target_modules": ["k_proj"], "feedforward_modules": [], "modules_to_save": ["lm_head"]}
    ),
    "IA3, GPT-2": Form(
        "Conv1D", {"target_modules": ["c_attn"], "feedforward_modules": [], "fan_in_fan_out": True}, "gpt2", "IA3Config"
    ),
    "VeRA": Form(kind="VeraConfig", settings={"r": 4, "target_modules": ["q_proj", "o_proj"]}),
    "VeRA, layers of two sizes": Form(kind="VeraConfig", settings={"r": 4, "target_modules": ["q_proj", "up_proj"]}),
    "VeRA, biases": Form(kind="VeraConfig", settings={"r": 4, "target_modules": ["q_proj"], "bias": "vera_only"}),
    "VeRA, GPT-2": Form(
        "is a Conv1D", {"r": 4, "target_modules": ["c_attn"], "fan_in_fan_out": True}, "gpt2", "VeraConfig"
    ),
    "LoKr, whole matrices": Form(kind="LoKrConfig", settings={"r": 64, "alpha": 6, "target_modules": ["q_proj"]}),
    "LoHa, rank above the width": Form(
        kind="LoHaConfig", settings={"r": 64, "alpha": 6, "target_modules": ["q_proj"], "alpha_pattern": {"q_proj": 3}}
    ),
    "IA3, head": Form(
        kind="IA3Config", settings={"target_modules": ["q_proj", "down_proj", "lm_head"], "feedforward_modules": ["down_proj"]}
    ),
    "IA3, tied head": Form(
        base="tied", kind="IA3Config", settings={"target_modules": ["lm_head"], "feedforward_modules": []}
    ),
    "VeRA without its projections": Form(
        "drawn anew", {"r": 4, "target_modules": ["q_proj"], "save_projection": False}, kind="VeraConfig"
    ),
    "trained tokens alone": Form(
        kind="TrainableTokensConfig", settings={"token_indices": [2, 5], "target_modules": ["embed_tokens"]}
    ),
    # the same in other words
    "keys without base_model": edited(rename(r"^base_model\.model\.", "")),
    "keys with base_model alone": edited(rename(r"^base_model\.model\.", "base_model.")),
    "name of the adapter in keys": edited(rename(r"(lora_[AB])\.weight", r"\1.default.weight")),
    "another name of the adapter": edited(rename(r"(lora_[AB])\.weight", r"\1.my-run_2.weight")),
    "compiled": edited(rename(r"^base_model\.model\.", "base_model.model._orig_mod.")),
    "DoRA, compiled": edited(rename(r"^base_model\.model\.", "base_model.model._orig_mod."), use_dora=True),
    "compiled in DataParallel": edited(rename(r"^", "module._orig_mod.")),
    "all biases, DataParallel": edited(rename(r"^", "module."), bias="all"),
    "compiled outside": edited(rename(r"^", "_orig_mod.")),
    "DataParallel": edited(rename(r"^", "module.")),
    "FSDP": edited(rename(r"(layers\.\d+\.)", r"\1_fsdp_wrapped_module.")),
    "FSDP outside": edited(rename(r"^", "_fsdp_wrapped_module.")),
    "checkpoint wrapper": edited(rename(r"(layers\.\d+\.)", r"\1_checkpoint_wrapped_module.")),
    "text adapter of a multimodal model": edited(rename(r"model\.layers", "model.language_model.layers")),
    "without the inner model's name": edited(rename(r"base_model\.model\.model\.", "base_model.model.")),
    "saved head in the old layout": edited(saved_under("modules_to_save.default."), modules_to_save=["lm_head"]),
    "saved head with the original beside it": edited(doubled("lm_head.weight", "original_module."), modules_to_save=["lm_head"]),
    "float16 exact": edited(cast("F16", exact=True), LOADS),
    "bfloat16": edited(cast("BF16"), LOADS),
    "float64": edited(cast("F64"), LOADS),
    "several dtypes": edited(cast("BF16", only="lora_A"), LOADS),
    "kind spelt as an enum": edited(config(peft_type="PeftType.LORA")),
    "kind in small letters": edited(config(peft_type="lora")),
    "no rank in the config": edited(config("r"), r=8),
    "no alpha in the config": edited(config("lora_alpha"), lora_alpha=8),
    "no targets in the config": edited(config("target_modules")),
    "no base in the config": edited(config("base_model_name_or_path")),
    "keys of a later version": edited(config(some_new_option=None, another={})),
    "keys of an old version": edited(config("rank_pattern", "alpha_pattern", "use_rslora", "use_dora", enable_lora=None)),
    "alpha a fraction": edited(config(lora_alpha=2.5), LOADS),
    "alpha zero": edited(config(lora_alpha=0), LOADS),
    "alpha negative": edited(config(lora_alpha=-3), LOADS),
    "metadata in the file": edited(add({}, metadata={"rank": "4"})),
    "optimizer beside it": edited(elsewhere("optimizer.pt")),
    "pickle beside it": edited(elsewhere("adapter_model.bin")),
    "tokenizer beside it": edited(elsewhere("tokenizer.json")),
    "one module has no factors": edited(drop(r"layers\.1.*v_proj"), LOADS),
    # damaged, or not for this base
    "pickle": edited(pickled, "pickle"),
    "no config": edited(lambda f: (f / "adapter_config.json").unlink(), "no adapter_config"),
    "no weights": edited(lambda f: (f / "adapter_model.safetensors").unlink(), "no adapter_model"),
    "config that is no JSON": edited(lambda f: fill(f / "adapter_config.json", b"{'r': 4"), "JSON"),
    "weights cut short": edited(
        lambda f: fill(f / "adapter_model.safetensors", (f / "adapter_model.safetensors").read_bytes()[:-9]), "cut|short|bytes"
    ),
    "empty file of weights": edited(lambda f: fill(f / "adapter_model.safetensors", b""), "safetensors|header|bytes"),
    "no tensors": edited(drop("."), "holds no tensors"),
    "B missing": edited(drop(r"layers\.0.*q_proj\.lora_B"), r"q_proj.* has \['lora_A'\]"),
    "A missing": edited(drop(r"layers\.0.*q_proj\.lora_A"), r"q_proj.* has \['lora_B'\]"),
    "rank of the config another": edited(config(r=2), "r=2"),
    "rank zero": edited(config(r=0), "r=0"),
    "rank a word": edited(config(r="4"), "r='4'"),
    "alpha a word": edited(config(lora_alpha="six"), "no number"),
    "alpha null": edited(config(lora_alpha=None), "no number"),
    "config of DoRA, weights without": edited(config(use_dora=True), "no lora_magnitude_vector"),
    "weights of DoRA, config without": edited(config(use_dora=False), "a lora_magnitude_vector", use_dora=True),
    "not a number": edited(first_only(float("nan")), "not finite|NaN"),
    "infinite": edited(first_only(float("inf")), "not finite|infinit"),
    "integers": edited(cast("I32"), "I32"),
    "sharded to nothing": edited(shard, "sharded"),
    "two adapters in one file": edited(both_names, "several adapters"),
    "module of another model": edited(rename("q_proj", "query_key_value"), "not in the base"),
    "layer that the base lacks": edited(rename(r"layers\.1\.", "layers.7."), "not in the base"),
    "unknown tensor": edited(add({"base_model.model.model.layers.0.self_attn.q_proj.other": [4, 4]}), "not in the base"),
    "wider than the base": edited(cast("F32", widen=True), "base's weight is"),
    "kohya": edited(kohya, "sd-scripts"),
    "diffusers": edited(rename(r"base_model.+layers\.(\d)\.self_attn", r"unet.down_blocks.\1.attn"), "not in the base"),
    "MLX": edited(mlx, "mlx-lm"),
    "no kind in the config": edited(config("peft_type"), "no peft_type"),
    "patterns that are no table": edited(config(rank_pattern=["q_proj"]), "not a table"),
    "pattern that is no regex": edited(config(rank_pattern={"(q_proj": 4}), "pattern"),
    "tokens of the config too few": edited(config(trainable_token_indices=[3]), "trained rows", trainable_token_indices=[3, 7]),
    "tokens beyond the vocabulary": edited(config(trainable_token_indices=[3, 99]), "token 99", trainable_token_indices=[3, 7]),
    "unnamed": edited(unnamed, "not in the base"),
}  # fmt: skip
PROMPTS = ("PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "MULTITASK_PROMPT_TUNING", "ADAPTION_PROMPT", "CPT", "CARTRIDGE")
ROUTES = ("XLORA", "POLY")
MERGED = ("LORA", "LOHA", "LOKR", "IA3", "VERA", "TRAINABLE_TOKENS")
for _kind in sorted(str(kind).rpartition(".")[2] for kind in peft.PeftType):
    if _kind not in MERGED:
        FORMS[f"kind {_kind}"] = edited(config(peft_type=_kind), NO_WEIGHT if _kind in (*PROMPTS, *ROUTES) else NO_FORMULA)


def row_of(name: str) -> dict[str, str]:
    return row(name, lambda place: one_form(FORMS[name], place))


def one_form(form: Form, place: Path) -> Verdict:
    """(right | runs | merges | refused | misled | wrong, what was said)."""
    base, folder = place / "base", place / "one"
    model = made(form.base)
    store(model, base, bare=form.base.endswith("-bare"))
    adapted = trained(copy.deepcopy(model), lambda _: getattr(peft, form.kind)(**form.settings), 0)
    adapted.save_pretrained(folder)
    if form.edit:
        form.edit(folder)
    if form.expect == LOADS:
        adapted = peft.PeftModel.from_pretrained(type(model).from_pretrained(base), folder).eval()
    recipe = recipe_of(base, [folder])
    if (verdict := tried(recipe, place, form.expect, "PEFT takes it", early=False)) is not None:
        return verdict
    running = outputs(adapted)
    adapted.merge_and_unload().save_pretrained(place / "peft-one")
    theirs, out = tensors(place / "peft-one"), tensors(place / "out")
    if form.base.endswith("-bare"):
        theirs = {name.removeprefix("transformer."): value for name, value in theirs.items()}
        running = None
    return judge(type(model), recipe, place, [theirs], running, out)


@cache
def made(base: str) -> Any:
    """A tiny model of random weights, biases and norms included."""
    torch.manual_seed(0)
    t = transformers
    if base == "moe":
        settings = {"moe_intermediate_size": 24, "num_experts": 4, "num_experts_per_tok": 2}
        model: Any = t.Qwen3MoeForCausalLM(t.Qwen3MoeConfig(**SIZE, **settings))
    elif base == "classifier":
        model = t.LlamaForSequenceClassification(t.LlamaConfig(**SIZE, num_labels=3))
    elif base.startswith("gpt2"):
        model = t.GPT2LMHeadModel(t.GPT2Config(**GPT2, tie_word_embeddings=base == "gpt2"))
    else:
        model = t.LlamaForCausalLM(t.LlamaConfig(**SIZE, attention_bias=True, tie_word_embeddings=base == "tied"))
    with torch.no_grad():
        for value in model.parameters():
            value.add_(torch.randn_like(value) * 0.05)
    return model.eval()


def store(model: Any, folder: Path, *, bare: bool) -> None:
    model.save_pretrained(folder)
    if bare:
        rename(r"^transformer\.", "", file="model.safetensors")(folder)


if __name__ == "__main__":
    sys.exit(run(__doc__, FORMS, row_of))
