#!/usr/bin/env python3
"""Every form in which a checkpoint is stored: shards, indices, dtypes, wrappers, other names, and files that are damaged.

usage: checkpoint_forms.py [--only WORD...] [--rows FILE]

Two fine-tunes of a tiny model are merged with their base (task_arithmetic); one or all of the three are stored in the form. Every
tensor of the output is held against float64 task arithmetic on the models as transformers loads them from the very files, and
transformers must report of the output what it reports of the base. `same` stands for forms that transformers does not read, but
that say the same: there the models are those before they were rewritten. Any other text is a pattern of the reason by which such
a form has to be refused, by validate and merge alike.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
import transformers

from benchmarks.matrix.form_edits import add, cast, config, drop, elsewhere, fill, first_only, read, rename, write
from benchmarks.matrix.forms import GPT2, LOADS, SAME, SIZE, Verdict, row, run, tried

WEIGHTS = (0.5, 0.3)
FILE = "model.safetensors"
INDEX = "model.safetensors.index.json"
VISION = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 16}
Edit = Callable[[Path], None]
ALL, ONE, BASE = ("base", "one", "two"), ("one",), ("base",)


@dataclass(frozen=True)
class Form:
    """`edit` rewrites the folders `where`; `model` is the class; `expect` says what is right (see above)."""

    edit: Edit | None = None
    expect: str = LOADS
    model: str = "llama"
    where: tuple[str, ...] = ALL
    dtype: str = "float32"


def split(*, sizes: int = 6, index: Callable[[dict[str, Any]], None] | None = None, twice: bool = False) -> Edit:
    """Store in shards, with an index that may then be changed; `twice` puts the first tensor into the second shard too."""

    def edit(folder: Path) -> None:
        found = read(folder, FILE)
        keys = sorted(found)
        parts = [keys[n : n + sizes] for n in range(0, len(keys), sizes)]
        table: dict[str, Any] = {"metadata": {"total_size": sum(v.nbytes for v in found.values())}, "weight_map": {}}
        for number, part in enumerate(parts):
            name = f"model-{number + 1:05}-of-{len(parts):05}.safetensors"
            write(folder, {key: found[key] for key in part} | ({keys[0]: found[keys[0]]} if twice and number == 1 else {}), name)
            table["weight_map"] |= dict.fromkeys(part, name)
        if index:
            index(table)
        (folder / INDEX).write_text(json.dumps(table), encoding="utf-8")
        (folder / FILE).unlink()

    return edit


def both(*edits: Edit) -> Edit:
    def edit(folder: Path) -> None:
        for one in edits:
            one(folder)

    return edit


def points(name: str, to: str) -> Callable[[dict[str, Any]], None]:
    return lambda table: table["weight_map"].update({name: to})


def lacks(name: str) -> Callable[[dict[str, Any]], None]:
    return lambda table: table["weight_map"].pop(name) and None


def copied(name: str, to: str) -> Edit:
    return lambda folder: write(folder, (t := read(folder, FILE)) | {to: t[name].clone()}, FILE)


def put(name: str, value: Callable[[], torch.Tensor]) -> Edit:
    return lambda folder: write(folder, read(folder, FILE) | {name: value()}, FILE)


def changed(name: str, by: Callable[[torch.Tensor], torch.Tensor]) -> Edit:
    return lambda folder: write(folder, (t := read(folder, FILE)) | {name: by(t[name])}, FILE)


def pickled(folder: Path) -> None:
    torch.save(read(folder, FILE), folder / "pytorch_model.bin")
    (folder / FILE).unlink()


def stray(folder: Path) -> None:
    """A shard that the index does not name, left from another save."""
    split()(folder)
    write(folder, {"model.norm.weight": torch.zeros(32)}, "model-00009-of-00009.safetensors")


def beside(folder: Path) -> None:
    """A whole file beside shards of other numbers: transformers reads the whole file."""
    whole = read(folder, FILE)
    split()(folder)
    write(folder, {key: value * 2 for key, value in whole.items()}, FILE)


def consolidated(folder: Path) -> None:
    """Mistral's own layout beside that of transformers, under its own names."""
    shutil.copy(folder / FILE, folder / "consolidated.safetensors")
    rename(r"^model\.", "", "consolidated.safetensors")(folder)


def moved(to: str) -> Edit:
    def edit(folder: Path) -> None:
        (folder / to).mkdir()
        (folder / FILE).rename(folder / to / FILE)

    return edit


def renamed_file(to: str) -> Edit:
    return lambda folder: (folder / FILE).rename(folder / to) and None


HEAD, EMBED = "lm_head.weight", "model.embed_tokens.weight"
Q0, NORM = "model.layers.0.self_attn.q_proj.weight", "model.norm.weight"
INV_FREQ = "model.layers.0.self_attn.rotary_emb.inv_freq"
FIRST = "model-00001-of-00004.safetensors"
IN_FILE = {"file": FILE}
FORMS: dict[str, Form] = {
    "one file": Form(),
    "shards": Form(split()),
    "shards, one source": Form(split(), where=ONE),
    "a shard for each tensor": Form(split(sizes=1)),
    "bfloat16": Form(cast("BF16", **IN_FILE), dtype="bfloat16"),
    "float16": Form(cast("F16", **IN_FILE), dtype="float16"),
    "float64": Form(cast("F64", **IN_FILE)),
    "one source in bfloat16": Form(cast("BF16", **IN_FILE), where=ONE),
    "base in float16": Form(cast("F16", **IN_FILE), where=BASE),
    "norms in float32, the rest bfloat16": Form(cast("BF16", only="proj", **IN_FILE)),
    "a tensor in float64": Form(cast("F64", only="norm", **IN_FILE)),
    "torch_dtype in the config": Form(config("dtype", file="config.json", torch_dtype="float32")),
    "both dtype keys in the config": Form(config(file="config.json", torch_dtype="float32", dtype="float32")),
    "no dtype in the config": Form(config("dtype", file="config.json")),
    "dtype of the config another": Form(config(file="config.json", dtype="bfloat16")),
    # buffers, scalars, empty and strange tensors
    "rotary buffers": Form(put(INV_FREQ, lambda: torch.arange(4.0))),
    "rotary buffers in one source": Form(put(INV_FREQ, lambda: torch.arange(4.0)), where=ONE),
    "position ids": Form(put("model.position_ids", lambda: torch.arange(8)[None])),
    "a causal mask": Form(put("model.layers.0.attn.bias", lambda: torch.ones(8, 8, dtype=torch.bool).tril()[None, None])),
    "a scalar": Form(put("model.logit_scale", lambda: torch.tensor(2.5))),
    "an integer scalar": Form(put("model.num_batches_tracked", lambda: torch.tensor(7))),
    "an empty tensor": Form(put("model.empty", lambda: torch.zeros(0, 32))),
    "an empty tensor in one source": Form(put("model.empty", lambda: torch.zeros(0, 32)), "model.empty", where=ONE),
    "a name with spaces": Form(put("a strange name", lambda: torch.ones(3))),
    "a name of other letters": Form(put("модель.вес", lambda: torch.ones(3))),
    "a name without dots": Form(put("scale", lambda: torch.ones(3))),
    "a long name": Form(put("model." + "x" * 900, lambda: torch.ones(3))),
    "numbers that are not finite": Form(first_only(float("nan"), **IN_FILE), "not finite|NaN", where=ONE),
    "infinite numbers": Form(first_only(float("inf"), **IN_FILE), "not finite|infinit", where=ONE),
    "packed integers": Form(changed(Q0, lambda t: t.to(torch.int8)), "I8", where=ONE),
    # wrappers and prefixes
    "compiled": Form(rename("^", "_orig_mod.", FILE), SAME, where=ONE),
    "compiled, all": Form(rename("^", "_orig_mod.", FILE), SAME),
    "compiled layers": Form(rename(r"(layers\.\d+)\.", r"\1._orig_mod.", FILE), SAME, where=ONE),
    "DataParallel": Form(rename("^", "module.", FILE), SAME, where=ONE),
    "FSDP": Form(rename("^", "_fsdp_wrapped_module.", FILE), SAME, where=ONE),
    "FSDP layers": Form(rename(r"(layers\.\d+)\.", r"\1._fsdp_wrapped_module.", FILE), SAME, where=ONE),
    "checkpoint wrapper": Form(rename(r"(layers\.\d+)\.", r"\1._checkpoint_wrapped_module.", FILE), SAME, where=ONE),
    "two wrappers": Form(rename("^", "module._orig_mod.", FILE), SAME, where=ONE),
    "base without prefix": Form(rename(r"^transformer\.", "", FILE), model="gpt2", where=BASE),
    "one source without prefix": Form(rename(r"^transformer\.", "", FILE), model="gpt2", where=ONE),
    "all without prefix": Form(rename(r"^transformer\.", "", FILE), model="gpt2"),
    "Llama without prefix": Form(rename(r"^model\.", "", FILE), where=ONE),
    # heads and embeddings
    "tied": Form(model="tied"),
    "tied, head stored too": Form(copied(EMBED, HEAD), model="tied"),
    "tied, head stored in one source": Form(copied(EMBED, HEAD), model="tied", where=ONE),
    "tied, head stored in the base": Form(copied(EMBED, HEAD), model="tied", where=BASE),
    "tied, flag missing": Form(config("tie_word_embeddings", file="config.json"), model="gpt2"),
    "untied, head missing in one": Form(drop("^lm_head", FILE), "lm_head", where=ONE),
    "untied, head missing in all": Form(drop("^lm_head", FILE), "lm_head|head"),
    # files
    "index in other order": Form(split(index=lambda t: t.update(weight_map=dict(reversed(t["weight_map"].items()))))),
    "index without metadata": Form(split(index=lambda t: t.pop("metadata") and None), SAME, where=ONE),
    "index with a wrong total": Form(split(index=lambda t: t["metadata"].update(total_size=1))),
    "index that names a missing shard": Form(split(index=points(NORM, "model-00077.safetensors")), "model-00077", where=ONE),
    "index that names another shard": Form(split(index=points(Q0, FIRST)), "index|not in|q_proj", where=ONE),
    "index that lacks a tensor": Form(split(index=lacks(NORM)), where=ONE),
    "index that names a tensor that is nowhere": Form(split(index=points("model.other", FIRST)), "model.other", where=ONE),
    "index outside its folder": Form(split(index=points(NORM, "../one/model.safetensors")), "outside|\\.\\.", where=ONE),
    "index that is no JSON": Form(both(split(), lambda f: fill(f / INDEX, b"{'weight_map'")), "JSON", where=ONE),
    "index that is no table": Form(both(split(), lambda f: fill(f / INDEX, b"[1, 2]")), "not a JSON object", where=ONE),
    "index alone": Form(both(split(), lambda f: (f / FIRST).unlink()), FIRST, where=ONE),
    "a tensor in two shards": Form(split(twice=True), "is in both"),
    "a shard that the index does not name": Form(stray),
    "shards without an index": Form(both(split(), lambda f: (f / INDEX).unlink()), "index", where=ONE),
    "a whole file beside shards": Form(beside, "lies beside a sharded model", where=ONE),
    "pickle": Form(pickled, "pickle", where=ONE),
    "pickle beside it": Form(elsewhere("pytorch_model.bin")),
    "consolidated file beside it": Form(consolidated),
    "consolidated file alone": Form(renamed_file("consolidated.safetensors"), "Mistral", where=ONE),
    "GGUF name alone": Form(renamed_file("model.gguf"), "GGUF|gguf", where=ONE),
    "folder in a folder": Form(moved("checkpoint-500"), "checkpoint-500", where=ONE),
    "original folder beside it": Form(lambda f: (f / "original").mkdir()),
    "trainer state beside it": Form(both(elsewhere("trainer_state.json"), elsewhere("training_args.bin"))),
    "no config": Form(lambda f: (f / "config.json").unlink(), "config.json", where=ONE),
    "config that is no JSON": Form(lambda f: fill(f / "config.json", b"{"), "JSON", where=ONE),
    "config without architectures": Form(config("architectures", file="config.json"), where=ONE),
    "config of many more layers": Form(config(file="config.json", num_hidden_layers=9), "layer|num_hidden_layers", where=ALL),
    "file cut short": Form(lambda f: fill(f / FILE, (f / FILE).read_bytes()[:-9]), "sound|bytes", where=ONE),
    "pointer of Git LFS": Form(lambda f: fill(f / FILE, b"version https://git-lfs.github.com/spec/v1\n"), "LFS", where=ONE),
    "empty file": Form(lambda f: fill(f / FILE, b""), "bytes", where=ONE),
    "adapter config beside a model": Form(elsewhere("adapter_config.json"), SAME, where=ONE),
    # shapes and architectures
    "a matrix turned over": Form(changed("model.layers.0.mlp.up_proj.weight", lambda t: t.T), "up_proj", where=ONE),
    "a vector as a matrix": Form(changed(NORM, lambda t: t[None]), "norm", where=ONE),
    "vocabulary of more rows": Form(changed(HEAD, lambda t: torch.cat((t, t[:2]))), "lm_head|vocabular", where=ONE),
    "a tensor missing": Form(drop("layers.1.mlp.up_proj", FILE), "up_proj", where=ONE),
    "a tensor more": Form(add({"model.layers.0.extra.weight": [4, 4]}, file=FILE), "extra", where=ONE),
    "multimodal": Form(model="llava"),
    "multimodal, text config without a type": Form(model="llava", edit=config(file="config.json", dtype="float32")),
    "experts": Form(model="moe"),
    "experts, shards": Form(split(sizes=5), model="moe", where=ONE),
    "encoder and decoder": Form(model="t5"),
    "GPT-2": Form(model="gpt2"),
    "GPT-2 with its masks": Form(put("transformer.h.0.attn.bias", lambda: torch.ones(1, 1, 8, 8).tril()), model="gpt2"),
    "GPT-2 with its masks in one": Form(
        put("transformer.h.0.attn.masked_bias", lambda: torch.tensor(-1e4)), model="gpt2", where=ONE
    ),
}  # fmt: skip


def row_of(name: str) -> dict[str, str]:
    return row(name, lambda place: one_form(FORMS[name], place))


def one_form(form: Form, place: Path) -> Verdict:
    """(right | refused | misled | wrong, what was said)."""
    for number, name in enumerate(ALL):
        shutil.copytree(made(form.model, number), place / name)
        shutil.copytree(made(form.model, number), place / "before" / name)
        if form.edit and name in form.where:
            form.edit(place / name)
    entries = "".join(
        f"  - model: {place / name}\n    parameters: {{weight: {weight}}}\n"
        for name, weight in zip(("one", "two"), WEIGHTS, strict=True)
    )
    recipe = f"merge_method: task_arithmetic\nbase_model: {place / 'base'}\nmodels:\n{entries}dtype: {form.dtype}\n"
    if (verdict := tried(recipe, place, form.expect, "it loads", early=True)) is not None:
        return verdict
    return compare(type_of(form.model), place / "before" if form.expect == SAME else place, place / "out", form.dtype)


def compare(cls: Any, sources: Path, output: Path, dtype: str) -> tuple[str, str]:
    """As transformers loads the four models."""
    (base, before), (one, _), (two, _) = (loaded(cls, sources / name) for name in ALL)
    out, report = loaded(cls, output)
    if report != before:
        return "wrong", f"a loader reports {report} and for the base {before}"
    near = {"float32": 2.0**-22, "bfloat16": 2.0**-8, "float16": 2.0**-10}[dtype]
    for key, value in out.items():
        wanted = base[key] + WEIGHTS[0] * (one[key] - base[key]) + WEIGHTS[1] * (two[key] - base[key])
        if value.shape != wanted.shape or ((value - wanted).abs() > wanted.abs() * near + 1e-6).any():
            return "wrong", f"{key} is not the sum of its deltas"
    return "right", ""


def loaded(cls: Any, folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, list[str]]]:
    model, info = cls.from_pretrained(folder, output_loading_info=True, dtype=torch.float32)
    report = {key: sorted(map(str, info[key])) for key in ("missing_keys", "unexpected_keys", "mismatched_keys")}
    return {key: value.double() for key, value in model.state_dict().items() if value.is_floating_point()}, report


def type_of(model: str) -> Any:
    t = transformers
    classes = {
        "llama": t.LlamaForCausalLM, "tied": t.LlamaForCausalLM, "gpt2": t.GPT2LMHeadModel, "moe": t.Qwen3MoeForCausalLM,
        "t5": t.T5ForConditionalGeneration, "llava": t.LlavaForConditionalGeneration,
    }  # fmt: skip
    return classes[model]


@cache
def made(model: str, number: int) -> Path:
    """A base, or one of two fine-tunes of it, stored once."""
    t = transformers
    settings: Any = {
        "llama": lambda: t.LlamaConfig(**SIZE, tie_word_embeddings=False),
        "tied": lambda: t.LlamaConfig(**SIZE, tie_word_embeddings=True),
        "gpt2": lambda: t.GPT2Config(**GPT2),
        "moe": lambda: t.Qwen3MoeConfig(**SIZE, moe_intermediate_size=24, num_experts=4, num_experts_per_tok=2),
        "t5": lambda: t.T5Config(d_model=32, d_ff=48, d_kv=8, num_layers=2, num_heads=4, vocab_size=64),
        "llava": lambda: t.LlavaConfig(
            text_config=SIZE | {"model_type": "llama"},
            vision_config=VISION | {"model_type": "clip_vision_model", "patch_size": 8, "projection_dim": 32},
            image_token_index=60,
        ),
    }[model]
    torch.manual_seed(0)
    start = type_of(model)(settings())
    torch.manual_seed(number)
    with torch.no_grad():
        for value in start.parameters():
            value.add_(torch.randn_like(value) * 0.02)
    _MADE.append(tempfile.TemporaryDirectory(prefix="made-", ignore_cleanup_errors=True))
    folder = Path(_MADE[-1].name)
    start.save_pretrained(folder)
    return folder


_MADE: list[tempfile.TemporaryDirectory[str]] = []
"""The folders of `made`, removed when the process ends."""


if __name__ == "__main__":
    sys.exit(run(__doc__, FORMS, row_of))
