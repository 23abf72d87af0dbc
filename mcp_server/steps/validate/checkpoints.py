"""MM3xx: whether the sources fit each other. A source that cannot be looked at leaves a check undecided, never passed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from mcp_server.formats.checkpoint import Checkpoint
from mcp_server.formats.identity import FIELDS, architecture_name, config_field, token_ids, tokenizer_hash
from mcp_server.formats.recipe import ModelRef
from mcp_server.formats.tensor_names import is_buffer, is_word_embedding, vocabulary_tensor
from mcp_server.formats.tensors import DTYPES, StoredTensor
from mcp_server.steps.validate.context import Context, Unknown
from mcp_server.steps.validate.engines import plan_of
from mcp_server.steps.validate.parameters import all_parameters
from mcp_server.steps.validate.registry import Found, check

SHAPES: Final = tuple(name for name in FIELDS if name not in ("vocabulary", "layers"))
SHOWN: Final = 3


@check("MM304")
def sources_line_up(context: Context) -> Iterator[Found]:
    models = two_or_more(context)
    if any(ref.override_architecture for ref in models):
        return
    first_ref, first = next(iter(models.items()))
    for ref, model in models.items():
        differing = {
            name: (a, b)
            for name, a, b in (
                ("architecture", architecture_name(first.config), architecture_name(model.config)),
                *((f, config_field(first.config, f), config_field(model.config, f)) for f in SHAPES),
            )
            if a is not None and b is not None and a != b
        }
        # A text model beside a multimodal one, an encoder beside its head: one family, and a place for every tensor.
        if "architecture" in differing and _related(first.config, model.config) and _planned(context):
            del differing["architecture"]
        if context.recipe.models and first.layers and model.layers and first.layers != model.layers:
            differing["layers"] = (first.layers, model.layers)
        if differing:
            text = ", ".join(f"{name} {a} and {b}" for name, (a, b) in differing.items())
            yield Found(f"{first_ref} and {ref} do not line up: {text}", context.where(ref))


@check("MM305")
def vocabularies_agree(context: Context) -> Iterator[Found]:
    if has_tokenizer(context):
        return
    models = two_or_more(context)
    sizes = {ref: vocabulary_rows(model) for ref, model in models.items()}
    known = {ref: size for ref, size in sizes.items() if size is not None}
    if len(set(known.values())) > 1:
        shown = ", ".join(f"{ref} {size}" for ref, size in known.items())
        yield Found(f"the vocabularies have different sizes: {shown}", "tokenizer", "add 'tokenizer: {source: base}' or union")


@check("MM306")
def tensors_agree(context: Context) -> Iterator[Found]:
    if context.recipe.sliced or context.recipe.in_parts or has_tokenizer(context):
        vocabulary_matters = False
    else:
        vocabulary_matters = True
    models = two_or_more(context)
    first_ref, first = next(iter(models.items()))
    for ref, model in models.items():
        if ref == first_ref or architecture_name(model.config) != architecture_name(first.config) or _planned(context):
            continue
        missing = sorted(n for n, t in first.tensors.items() if n not in model.tensors and not _optional(n, t))
        extra = sorted(n for n, t in model.tensors.items() if n not in first.tensors and not _optional(n, t))
        if model.layers != first.layers:
            missing, extra = [], []
        if missing:
            yield Found(f"{ref} lacks {_some(missing)}, which {first_ref} has", context.where(ref), _complete(ref, first_ref))
        if extra:
            yield Found(f"{ref} has {_some(extra)}, which {first_ref} lacks", context.where(ref), _complete(first_ref, ref))
        other = [
            f"{name} {list(first.tensors[name].shape)} and {list(tensor.shape)}"
            for name, tensor in model.tensors.items()
            if name in first.tensors and tensor.shape != first.tensors[name].shape and not vocabulary_tensor(name)
        ]
        same_fields = all(config_field(first.config, f) == config_field(model.config, f) for f in SHAPES)
        if other and same_fields and vocabulary_matters:
            step = f"{ref} is no fine-tune of the model of {first_ref}: name a source of its size"
            yield Found(f"{first_ref} and {ref} differ in shape: {_some(other)}", context.where(ref), step)


def _complete(lacks: object, has: object) -> str:
    return f"download or save {lacks} again; if it is complete, it is of another architecture than {has}: do not average the two"


@check("MM307")
def precision_is_chosen(context: Context) -> Iterator[Found]:
    if context.recipe.dtype or context.recipe.kind != "merge":
        return
    models = two_or_more(context)
    found = {ref: dtype for ref, model in models.items() if (dtype := main_dtype(model))}
    if len(set(found.values())) > 1:
        shown = ", ".join(f"{ref} {DTYPES.get(dtype, dtype)}" for ref, dtype in found.items())
        yield Found(f"the sources have different dtypes and the recipe sets none: {shown}", "dtype")


@check("MM309")
def heads_are_tied_alike(context: Context) -> Iterator[Found]:
    models = two_or_more(context)
    tied = {ref: model.tied for ref, model in models.items()}
    if len(set(tied.values())) > 1:
        apart = ", ".join(str(ref) for ref, flag in tied.items() if not flag)
        yield Found(f"{apart} has an output head of its own, the other sources tie it to the embedding", "base_model")


@check("MM311")
def tokens_agree(context: Context) -> Iterator[Found]:
    if has_tokenizer(context):
        return
    models = two_or_more(context)
    tables: dict[ModelRef, dict[str, int]] = {}
    hashes = {ref: tokenizer_hash(model.folder) for ref, model in models.items()}
    if len({h for h in hashes.values() if h}) < 2 or len({vocabulary_rows(m) for m in models.values()}) > 1:
        return
    for ref, model in models.items():
        if ids := token_ids(model.folder):
            tables[ref] = ids
    if len(tables) < 2:
        raise Unknown("the tokenizers are not in tokenizer.json form")
    (first_ref, first), *others = tables.items()
    by_id = {number: token for token, number in first.items()}
    for ref, ids in others:
        clashes = [(n, by_id[n], token) for token, n in ids.items() if by_id.get(n, token) != token]
        if clashes:
            number, a, b = clashes[0]
            text = f"{len(clashes)} ids mean different tokens in {first_ref} and {ref}, such as {number}: {a!r} and {b!r}"
            yield Found(text, "tokenizer", "add 'tokenizer: {source: base}' or union")


@check("MM313")
def filters_match(context: Context) -> Iterator[Found]:
    models = context.opened()
    if not models:
        raise Unknown("no source is on this machine")
    names = [name for model in models.values() for name in model.tensors]
    for where, parameter, setting in all_parameters(context):
        for entry in setting if isinstance(setting, list) else [setting]:
            wanted = entry.get("filter") if isinstance(entry, dict) else None
            if wanted not in (None, "*") and not any(str(wanted) in name for name in names):
                yield Found(f"the filter {wanted!r} of {parameter} is part of no tensor's name", where)


def has_tokenizer(context: Context) -> bool:
    return context.recipe.tokenizer_from is not None


def vocabulary_rows(model: Checkpoint) -> int | None:
    """Rows of the embedding as they are stored; the config's figure only when no embedding is found."""
    for name, tensor in model.tensors.items():
        if is_word_embedding(name) and tensor.shape:
            return tensor.shape[0]
    return config_field(model.config, "vocabulary")


def main_dtype(model: Checkpoint) -> str | None:
    by: dict[str, int] = {}
    for tensor in model.tensors.values():
        by[tensor.dtype] = by.get(tensor.dtype, 0) + tensor.number_bytes
    return max(by, key=lambda dtype: by[dtype], default=None)


def two_or_more(context: Context) -> dict[ModelRef, Checkpoint]:
    """The opened models, one for each full model named. Raises `Unknown` when there is nothing to compare."""
    opened: dict[str, tuple[ModelRef, Checkpoint]] = {}
    for ref, model in context.opened().items():
        opened.setdefault(ref.base_ref, (ref, model))
    if not opened or (len(opened) < 2 and not context.all_here()):
        raise Unknown("fewer than two sources are on this machine")
    return dict(opened.values())


def _related(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two configs, or the text models in them, are of one family: 'llama' is not 'mistral', 'qwen2' is in 'qwen2_vl'."""
    types = [
        {str(c["model_type"]) for c in (config, config.get("text_config")) if isinstance(c, dict) and c.get("model_type")}
        for config in (one, other)
    ]
    return any(a.startswith(b) or b.startswith(a) for a in types[0] for b in types[1])


def _planned(context: Context) -> bool:
    """Whether the engine's plan, which matches tensors exactly, has found a place for every one of them."""
    try:
        return plan_of(context) == []
    except Unknown:
        return False


def _optional(name: str, tensor: StoredTensor) -> bool:
    """Tensors that some tools write and others leave out without harm."""
    return vocabulary_tensor(name) or is_buffer(name, tensor.shape)


def _some(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
