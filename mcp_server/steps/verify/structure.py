"""Names, shapes and dtypes of the output against its base, its config and its index."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any

from mcp_server.formats.identity import config_field
from mcp_server.formats.tensors import read_json
from mcp_server.schemas.evidence import Check
from mcp_server.steps.verify.merge import Merge

_LAYER = re.compile(r"^(?P<stem>.*?\blayers|.*?\bh|.*?\bblocks)\.(?P<number>\d+)\.(?P<rest>.+)$")
_DTYPES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}


def checks(merge: Merge) -> Iterator[Check]:
    """The structure's checks, in the order in which a reader wants them."""
    if merge.is_adapter:
        yield _adapter_targets(merge)
        return
    yield _index(merge)
    yield _layers(merge)
    if merge.base is not None and _keeps_layout(merge):
        yield _same_tensors(merge)
    yield _dtype(merge)


def _keeps_layout(merge: Merge) -> bool:
    """Recipes built from slices may repeat or drop layers; then the base's list of tensors says nothing."""
    if merge.recipe is None or merge.recipe.slices or merge.recipe.modules:
        return False
    return merge.recipe.tokenizer_source is None and merge.recipe.tokenizer is None


def _index(merge: Merge) -> Check:
    """Index and shards say the same, and no stale weight file lies beside them."""
    index = merge.folder / "model.safetensors.index.json"
    used = {file.name for file in merge.files}
    stale = sorted(file.name for file in merge.folder.glob("*.safetensors") if file.name not in used)
    if stale:
        detail = f"{stale[0]} is not one of the model's files but a loader may read it; remove it"
        return Check(name="index", passed=False, detail=detail)
    if not index.is_file():
        return Check(name="index", passed=True, detail="one file, no index needed")
    table: dict[str, str] = read_json(index)["weight_map"]
    if unlisted := sorted(set(merge.tensors) - set(table)):
        detail = f"{len(unlisted)} tensors are in the shards and not in the index, such as {unlisted[0]}"
        return Check(name="index", passed=False, detail=detail)
    wrong = [name for name, tensor in merge.tensors.items() if table[name] != tensor.file.name]
    if wrong:
        return Check(name="index", passed=False, detail=f"the index puts {wrong[0]} into {table[wrong[0]]}, where it is not")
    return Check(name="index", passed=True, detail=f"{len(table)} tensors in {len(set(table.values()))} shards, as indexed")


def _layers(merge: Merge) -> Check:
    """Every layer from 0 to the config's number has the same tensors with the same shapes."""
    shapes: dict[str, dict[int, dict[str, tuple[int, ...]]]] = defaultdict(lambda: defaultdict(dict))
    for name, tensor in merge.tensors.items():
        if found := _LAYER.match(name):
            shapes[found["stem"]][int(found["number"])][found["rest"]] = tensor.shape
    if not shapes:
        return Check(name="layers", passed=None, detail="no tensor name looks like a layer's; the architecture is unknown here")
    stem, layers = max(shapes.items(), key=lambda item: len(item[1]))
    wanted = config_field(merge.config, "layers")
    if wanted is not None and len(layers) != wanted:
        return Check(name="layers", passed=False, detail=f"config.json says {wanted} layers, the weights have {len(layers)}")
    if gaps := sorted(set(range(len(layers))) - set(layers)):
        return Check(name="layers", passed=False, detail=f"layer {gaps[0]} is missing")
    usual = Counter(frozenset(layer.items()) for layer in layers.values()).most_common(1)[0][0]
    if _uniform(merge.config):
        for number in sorted(layers):
            if odd := set(usual) ^ set(layers[number].items()):
                names = ", ".join(sorted({rest for rest, _ in odd}))
                return Check(
                    name="layers", passed=False, detail=f"{stem}.{number} differs from the other layers in {names[:160]}"
                )
    return Check(name="layers", passed=True, detail=f"{len(layers)} layers of {len(usual)} tensors each, as config.json says")


def _uniform(config: dict[str, Any]) -> bool:
    """Hybrid models (layer_types, interleaved experts) have layers that differ on purpose."""
    kinds = config.get("layer_types")
    hybrid = isinstance(kinds, list) and len(set(map(str, kinds))) > 1
    return not hybrid and not any(key in config for key in ("moe_layer_freq", "decoder_sparse_step", "mlp_only_layers"))


def _same_tensors(merge: Merge) -> Check:
    assert merge.base is not None
    wanted, found = merge.base.tensors, merge.tensors
    optional = {"lm_head.weight"} if _tied(merge.config) else set()
    if absent := sorted(set(wanted) - set(found) - optional):
        return Check(name="tensors", passed=False, detail=f"{len(absent)} tensors of the base are missing, such as {absent[0]}")
    if extra := sorted(set(found) - set(wanted) - optional):
        return Check(name="tensors", passed=False, detail=f"{len(extra)} tensors are not in the base, such as {extra[0]}")
    for name, tensor in found.items():
        if name in wanted and tensor.shape != wanted[name].shape:
            shapes = f"{list(tensor.shape)} instead of {list(wanted[name].shape)}"
            return Check(name="tensors", passed=False, detail=f"{name} has shape {shapes}")
    return Check(name="tensors", passed=True, detail=f"all {len(wanted)} tensors of the base, each with its shape")


def _tied(config: dict[str, Any]) -> bool:
    return bool(config.get("tie_word_embeddings", False))


def _dtype(merge: Merge) -> Check:
    """The weights are in the dtype that the recipe asks for; config.json names it."""
    counts = Counter(tensor.dtype for tensor in merge.tensors.values())
    main = counts.most_common(1)[0][0]
    named = merge.config.get("dtype", merge.config.get("torch_dtype"))
    asked = merge.recipe.out_precision if merge.recipe else None
    mixed = "" if len(counts) == 1 else f"; also {', '.join(f'{n} in {d}' for d, n in counts.most_common()[1:])}"
    if asked is not None and _DTYPES.get(asked, main) != main:
        return Check(name="dtype", passed=False, detail=f"the recipe asks for {asked}, the weights are {main}")
    if isinstance(named, str) and _DTYPES.get(named, main) != main:
        return Check(
            name="dtype", passed=False, detail=f"config.json says {named}, the weights are {main}: loaders would convert"
        )
    return Check(name="dtype", passed=True, detail=f"{counts[main]} tensors in {main}{mixed}")


def _adapter_targets(merge: Merge) -> Check:
    if merge.base is None:
        reason = merge.missing.get("the base", "no recipe names it")
        return Check(name="tensors", passed=None, detail=f"the base that the adapter belongs to could not be opened: {reason}")
    count = len(merge.adapter.changes) if merge.adapter else 0
    return Check(name="tensors", passed=count > 0, detail=f"an adapter that changes {count} tensors of its base")
