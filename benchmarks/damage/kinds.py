"""Ways in which a merge can be wrong, and what a reader has to be told of each.

A kind damages the files of a right merge, or makes the merge by another recipe than the one that is given. It applies to the
arrangements that have the tensors which it is about.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from benchmarks.damage import acts
from benchmarks.damage.families import FAMILIES, HIDDEN, KEYS, WIDE, Family


@dataclass(frozen=True)
class Kind:
    """`needs`: roles that an arrangement must have. `words`: one of them has to be said. `method`: of the right merge.

    `at`: "model" (any but adapters into one), "fold" (adapters folded), "adapter" (adapters into one). `seeded`: only the
    record's seed tells it. `keys`: config.json must have one of them. `of_recipe`: it is a right merge by another recipe.
    """

    name: str
    act: acts.Act
    words: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    at: str = "model"
    method: str = "task_arithmetic"
    settings: dict[str, Any] = field(default_factory=dict)
    seeded: bool = False
    keys: tuple[str, ...] = ()
    of_recipe: bool = False

    def fits(self, family: Family) -> bool:
        kind = "adapter" if family.adapter else "fold" if family.adapted else "model"
        if kind not in (self.at, "fold" if self.at == "model" else self.at) or not set(self.needs) <= set(family.roles):
            return False
        return not self.keys or any(key in family.config for key in self.keys)


NAMED = ("wrong scale", "values differ", "equals", "opposite", "order", "belongs")
KINDS: tuple[Kind, ...] = (
    # one tensor
    Kind("matrix negated", acts.on("matrix", lambda m: -m), ("opposite sign",), ("matrix",)),
    Kind("norm negated", acts.on("norm", lambda m: -m), ("opposite sign",), ("norm",)),
    Kind("bias negated", acts.on("bias", lambda m: -m), ("opposite sign",), ("bias",)),
    Kind("square matrix transposed", acts.on("square", lambda m: m.T), ("transposed",), ("square",)),
    Kind("matrix in the order of columns", acts.on("matrix", lambda m: m.T.reshape(m.shape)), ("transposed",), ("matrix",)),
    Kind("matrix doubled", acts.on("matrix", lambda m: 2 * m), ("wrong scale: 2",), ("matrix",)),
    Kind("matrix halved", acts.on("matrix", lambda m: m / 2), ("wrong scale: 0.5",), ("matrix",)),
    Kind("matrix 10 % too large", acts.on("matrix", lambda m: 1.1 * m), ("wrong scale: 1.1",), ("matrix",)),
    Kind("matrix zeroed", acts.on("matrix", lambda m: 0 * m), ("zero",), ("matrix",)),
    Kind("norm zeroed", acts.on("norm", lambda m: 0 * m), ("zero",), ("norm",)),
    Kind("norm all ones", acts.on("norm", np.ones_like), ("values differ",), ("norm",)),
    Kind("norm plus one", acts.on("norm", lambda m: m + 1), ("values differ",), ("norm",)),
    Kind("bias zeroed", acts.on("bias", lambda m: 0 * m), ("zero",), ("bias",)),
    Kind("bias doubled", acts.on("bias", lambda m: 2 * m), ("wrong scale: 2",), ("bias",)),
    Kind("matrix left at the base", acts.taken("matrix", "base"), ("equals the base",), ("matrix",)),
    Kind("norm left at the base", acts.taken("norm", "base"), ("equals the base",), ("norm", "stack")),
    Kind("matrix of one source", acts.taken("matrix", "one"), ("equals one source",), ("matrix", "stack")),
    Kind("matrix of another model", acts.taken("matrix", "other"), ("values differ",), ("matrix",)),
    Kind("rows in another order", acts.on("matrix", lambda m: np.roll(m, 3, 0)), ("rows in another order",), ("matrix",)),
    Kind("columns in another order", acts.on("matrix", lambda m: np.roll(m, 1, 1)), ("columns in another order",), ("matrix",)),
    Kind("two rows swapped", acts.on("matrix", lambda m: m[[0, 1, 2, 4, 3, *range(5, len(m))]]), ("rows in another order",),
         ("matrix",)),
    Kind("head reversed", acts.on("head", lambda m: m[::-1]), ("reversed",), ("head",)),
    Kind("embedding reversed", acts.on("embedding", lambda m: m[::-1]), ("reversed",), ("embedding",)),
    Kind("heads in another order", acts.on("heads", acts.blocks((1, 0, 3, 2), (8,) * 4)), ("rows in another order",),
         ("heads",)),
    Kind("rotary halves interleaved", acts.on("heads", acts.interleaved), ("rows in another order",), ("heads",)),
    Kind("fused q and k swapped", acts.on("fused columns", acts.blocks((1, 0, 2), (HIDDEN,) * 3, 1)),
         ("columns in another order",), ("fused columns",)),
    Kind("fused k and v swapped", acts.on("fused rows", acts.blocks((0, 2, 1), (HIDDEN, KEYS, KEYS))),
         ("rows in another order",), ("fused rows",)),
    Kind("fused gate and up swapped", acts.on("gate and up", acts.blocks((1, 0), (WIDE,) * 2)), ("rows in another order",),
         ("gate and up",)),
    Kind("one row zeroed", acts.on("matrix", acts.some(5, lambda row: 0 * row)), ("row 5",), ("matrix",)),
    Kind("one block of another model", acts.on("matrix", acts.some(np.s_[4:8, 4:8], lambda part: part + 0.3)),
         ("rows 4 to 7",), ("matrix",)),
    Kind("one value wrong", acts.on("matrix", acts.some((6, 3), lambda value: value + 1)), ("row 6",), ("matrix",)),
    Kind("tail of the head wrong", acts.on("head", acts.some(np.s_[-3:], lambda part: part + 0.25)), ("rows 45 to 47",),
         ("head",)),
    Kind("NaN", acts.on("matrix", acts.some((6, 3), lambda value: value * np.nan)), ("not a number",), ("matrix",)),
    Kind("infinity", acts.on("norm", acts.some(3, lambda value: value + np.inf)), ("infinite",), ("norm",)),
    Kind("noise of 2 %", acts.on("matrix", lambda m: m + 0.02 * np.random.default_rng(8).standard_normal(m.shape)),
         ("values differ",), ("matrix",)),
    Kind("stored more coarsely", acts.on("matrix", acts.coarser), ("values differ",), ("matrix",)),
    Kind("shifted by a constant", acts.on("matrix", lambda m: m + 0.1), ("values differ",), ("matrix",)),
    # several tensors
    Kind("two matrices swapped", acts.swapped("square", "other_square"), ("belongs",), ("square", "other_square")),
    Kind("gate and up swapped", acts.swapped("matrix", "gate"), ("belongs",), ("matrix", "gate")),
    Kind("two layers swapped", acts.in_layers((0, 2, 1)), ("belongs",), ("stack",)),
    Kind("layers off by one", acts.in_layers((1, 2, 2)), ("belongs",), ("stack",)),
    Kind("encoder and decoder swapped", acts.stacks_swapped, ("belongs",), ("other stack",)),
    Kind("a layer missing", acts.without(lambda case: f"{case.family.roles['stack']}.1."), ("missing",), ("stack",)),
    Kind("a norm missing", acts.without(lambda case: case.family.roles["norm"]), ("missing",), ("norm",)),
    Kind("an expert missing", acts.without(lambda case: case.family.roles["expert"]), ("missing",), ("expert",)),
    Kind("an expert left at the base", acts.experts(lambda case, n, _o, _w: case.source("base")[n]), ("equals the base",),
         ("expert",)),
    Kind("an expert twice", acts.experts(lambda _c, _n, other, whole: whole[other]), ("belongs",), ("expert",)),
    Kind("experts of a stack swapped", acts.on("experts", acts.blocks((0, 2, 1, 3), (1,) * 4)), ("order",), ("experts",)),
    Kind("an expert of a stack left out", acts.on("experts", acts.some(1, lambda part: 0 * part)), ("row 1",), ("experts",)),
    Kind("gate and up of a stack swapped", acts.on("experts", acts.blocks((1, 0), (WIDE,) * 2, 2)), ("order",), ("experts",)),
    Kind("router reversed", acts.on("router", lambda m: m[::-1]), ("reversed",), ("router",)),
    Kind("vocabulary without its last rows", acts.cut_rows, ("rows", "shape"), ("embedding",)),
    Kind("a tensor that no source has", lambda case: case.put({"model.extra.weight": np.ones((4, 4))}), ("no source",),
         ("stack",)),
    Kind("nothing merged", acts.all_of("base"), ("equals the base",), ("stack",)),
    Kind("one source alone", acts.all_of("one"), ("equals one source",), ("embedding", "stack")),
    Kind("a head beside a tied embedding", acts.own_head, ("ties", "no source"), ("tied",)),
    # another recipe
    Kind("weights of the sources swapped", lambda case: case.again(weights=(0.3, 0.6)), NAMED, of_recipe=True),
    Kind("a weight 0.8 for 0.6", lambda case: case.again(weights=(0.8, 0.3)), NAMED, of_recipe=True),
    Kind("a source left out", lambda case: case.again(weights=(0.6,), sources=("one",)), NAMED, of_recipe=True),
    Kind("an older state of a source", lambda case: case.again(sources=("old", "two")), NAMED, of_recipe=True),
    Kind("another lambda", lambda case: case.again(**{"lambda": 0.5}), ("wrong scale",), of_recipe=True),
    Kind("normalised by the weights", lambda case: case.again(normalize=True), ("wrong scale",), of_recipe=True),
    Kind("another base", lambda case: case.again(base="other"), ("wrong base", "nearly every tensor differs", *NAMED),
         of_recipe=True),
    Kind("another method", lambda case: case.again(method="ties", density=0.5), NAMED, of_recipe=True),
    Kind("TIES with another density", lambda case: case.again(method="ties", density=0.7), NAMED, method="ties",
         settings={"density": 0.5}, of_recipe=True),
    Kind("TIES without its election", lambda case: case.again(method="breadcrumbs", density=0.5, gamma=0.0, normalize=True),
         NAMED,
         method="ties", settings={"density": 0.5}, of_recipe=True),
    Kind("DARE with another density", lambda case: case.again(method="dare_linear", density=0.8), NAMED, method="dare_linear",
         settings={"density": 0.5}, seeded=True, of_recipe=True),
    Kind("DARE with another seed", lambda case: case.again(method="dare_linear", density=0.5, seed=6), NAMED,
         method="dare_linear",
         settings={"density": 0.5}, seeded=True, of_recipe=True),
    Kind("slerp with another t", lambda case: case.again(method="slerp", sources=("one",), t=0.7), NAMED, method="slerp",
         settings={"t": 0.3}, of_recipe=True),
    # adapters folded
    Kind("adapters applied twice", lambda case: case.again(weights=(1.2, 0.6)), ("wrong scale: 2",), at="fold", of_recipe=True),
    Kind("alpha taken for the scale", acts.sources_with(acts.config(lora_alpha=8, alpha_pattern={"down_proj": 24}),
         acts.adapted), ("wrong scale",),
         at="fold"),
    Kind("rank-stabilised by mistake", acts.sources_with(acts.config(use_rslora=True), acts.adapted), ("wrong scale",),
         at="fold"),
    Kind("a pattern of alpha ignored", acts.sources_with(acts.config(alpha_pattern={}), acts.named("pattern")),
         ("wrong scale",), ("pattern",), at="fold"),
    Kind("a stale adapter", lambda case: case.again(acts.adapted(case), sources=("old", "two")), NAMED, at="fold"),
    Kind("an update transposed", acts.sources_with(acts.factors(acts.turned), acts.named("square")), ("values differ",),
         ("square",), at="fold"),
    Kind("a module not folded", acts.sources_with(acts.factors(lambda n, f: None if "layers.1.mlp.up_proj" in n else f[n]),
         acts.named("matrix")),
         ("equals the base",), ("matrix",), at="fold"),
    Kind("a head saved whole forgotten", acts.taken("head", "base"), ("equals the base",), ("head",), at="fold"),
    # adapters merged into one
    Kind("an adapter's B negated", acts.factor("B", lambda m: -m), ("opposite", "wrong scale: -1"), at="adapter"),
    Kind("an adapter's A zeroed", acts.factor("A", lambda m: 0 * m), ("equals the base",), at="adapter"),
    Kind("an adapter's B doubled", acts.factor("B", lambda m: 2 * m), ("wrong scale: 2",), at="adapter"),
    Kind("an adapter's row off", acts.factor("B", acts.some(3, lambda row: row + 1)), ("row 3",), at="adapter"),
    Kind("a module left out of an adapter", acts.module_left_out, ("equals the base",), at="adapter"),
    Kind("two modules' factors swapped", acts.modules_swapped, ("values differ", "belongs"), at="adapter"),
    Kind("an adapter's alpha changed", acts.adapter_setting(lora_alpha=16), ("wrong scale",), at="adapter"),
    Kind("an adapter of swapped weights", lambda case: case.again(acts.adapted(case), weights=(0.3, 0.6)), NAMED, at="adapter"),
    # files
    Kind("config.json names another dtype", lambda case: case.edit("config.json", torch_dtype="float64", dtype="float64"),
         ("float64",)),
    Kind("weights of another dtype", acts.other_dtype, ("asks for", "the weights are")),
    Kind("config.json counts other layers", lambda case: case.edit("config.json", num_hidden_layers=9, n_layer=9,
         encoder_layers=9), ("9 layers", "layers is 9"),
         ("embedding",)),
    Kind("config.json has another vocabulary", lambda case: case.edit("config.json", vocab_size=64), ("vocab_size is 64",),
         ("embedding",)),
    Kind("config.json has another number of heads", lambda case: case.edit("config.json", num_attention_heads=2, n_head=2,
         encoder_attention_heads=2),
         ("2",)),
    Kind("config.json has another rope_theta", lambda case: case.edit("config.json", rope_theta=5e5), ("rope",),
         keys=("rope_theta",)),
    Kind("config.json has another epsilon", lambda case: case.edit("config.json", rms_norm_eps=1e-3, layer_norm_epsilon=1e-3),
         ("0.001",), keys=("rms_norm_eps", "layer_norm_epsilon")),
    Kind("config.json has another activation", lambda case: case.edit("config.json", hidden_act="relu",
         activation_function="relu"), ("relu",), keys=("hidden_act", "activation_function")),
    Kind("config.json ties an own head", lambda case: case.edit("config.json", tie_word_embeddings=True), ("ties",), ("head",)),
    Kind("tokenizer of another vocabulary", acts.other_vocabulary, ("tokenizer",)),
    Kind("tokenizer missing", acts.removed("tokenizer.json", "tokenizer_config.json"), ("no tokenizer", "has none", "gone"), ),
    Kind("chat template missing", acts.removed("tokenizer_config.json"), ("chat template", "gone")),
    Kind("generation_config.json ends elsewhere", lambda case: case.edit("generation_config.json", eos_token_id=7),
         ("eos_token_id",)),
    Kind("a token beyond the embedding", lambda case: case.edit("generation_config.json", eos_token_id=500), ("500",)),
    Kind("a stale shard", acts.stale_shard, ("not one of the model's files",)),
    Kind("the file cut short", acts.truncated, ()),
)  # fmt: skip


def applicable() -> Iterator[tuple[Kind, Family]]:
    for kind in KINDS:
        for family in FAMILIES.values():
            if kind.fits(family):
                yield kind, family
