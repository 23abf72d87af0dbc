"""MM3xx: what the sources on this machine say. A source that cannot be looked at leaves a check undecided, never passed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from mcp_server.core.checkpoint import Checkpoint
from mcp_server.core.checkpoint.identity import FIELDS, architecture_name, config_field, token_ids, tokenizer_hash
from mcp_server.core.checkpoint.tensors import DTYPES
from mcp_server.core.errors import Malformed, NotAModel, NotFound
from mcp_server.core.recipe import ModelRef
from mcp_server.core.refs import is_hub_id
from mcp_server.core.validate.context import Context, absent
from mcp_server.core.validate.form import PLACEHOLDER
from mcp_server.core.validate.parameters import all_parameters
from mcp_server.core.validate.registry import Found, Unknown, check

SHAPES: Final = tuple(name for name in FIELDS if name not in ("vocabulary", "layers"))
SHOWN: Final = 3


@check("MM301")
def source_exists(context: Context) -> Iterator[Found]:
    seen = set()
    for where, ref in context.named():
        if context.is_stage(ref) or ref.base_ref in seen or PLACEHOLDER.search(str(ref)):
            continue
        seen.add(ref.base_ref)
        found = context.probe(ref)
        if isinstance(found, NotFound) and not absent(found):
            yield Found(found.message, where, found.next_step)
    for where, ref in context.named():
        if ref.adapter_ref and ref.adapter_ref not in seen:
            seen.add(ref.adapter_ref)
            adapter = context.probe_adapter(ref.adapter_ref)
            if isinstance(adapter, NotFound) and not absent(adapter):
                yield Found(adapter.message, where, adapter.next_step)


@check("MM302")
def source_can_be_merged(context: Context) -> Iterator[Found]:
    for where, ref in _each(context):
        found = context.probe(ref)
        if isinstance(found, NotAModel) and found.details.get("kind") != "lora":
            yield Found(found.message, where, found.next_step)


@check("MM304")
def sources_line_up(context: Context) -> Iterator[Found]:
    models = _two_or_more(context)
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
        if context.recipe.models and first.layers and model.layers and first.layers != model.layers:
            differing["layers"] = (first.layers, model.layers)
        if differing:
            text = ", ".join(f"{name} {a} and {b}" for name, (a, b) in differing.items())
            yield Found(f"{first_ref} and {ref} do not line up: {text}", _where(context, ref))


@check("MM305")
def vocabularies_agree(context: Context) -> Iterator[Found]:
    if has_tokenizer(context):
        return
    models = _two_or_more(context)
    sizes = {ref: vocabulary_rows(model) for ref, model in models.items()}
    known = {ref: size for ref, size in sizes.items() if size is not None}
    if len(set(known.values())) > 1:
        shown = ", ".join(f"{ref} {size}" for ref, size in known.items())
        yield Found(f"the vocabularies have different sizes: {shown}", "tokenizer", "add 'tokenizer: {source: base}' or union")


@check("MM306")
def tensors_agree(context: Context) -> Iterator[Found]:
    if context.recipe.slices or context.recipe.modules or has_tokenizer(context):
        vocabulary_matters = False
    else:
        vocabulary_matters = True
    models = _two_or_more(context)
    first_ref, first = next(iter(models.items()))
    for ref, model in models.items():
        if ref == first_ref or architecture_name(model.config) != architecture_name(first.config):
            continue
        missing = sorted(n for n in first.tensors if n not in model.tensors and not _optional(n))
        extra = sorted(n for n in model.tensors if n not in first.tensors and not _optional(n))
        if model.layers != first.layers:
            missing, extra = [], []
        if missing:
            yield Found(f"{ref} lacks {_some(missing)}, which {first_ref} has", _where(context, ref))
        if extra:
            yield Found(f"{ref} has {_some(extra)}, which {first_ref} lacks", _where(context, ref))
        other = [
            f"{name} {list(first.tensors[name].shape)} and {list(tensor.shape)}"
            for name, tensor in model.tensors.items()
            if name in first.tensors and tensor.shape != first.tensors[name].shape and not _is_vocabulary(name)
        ]
        same_fields = all(config_field(first.config, f) == config_field(model.config, f) for f in SHAPES)
        if other and same_fields and vocabulary_matters:
            yield Found(f"{first_ref} and {ref} differ in shape: {_some(other)}", _where(context, ref))


@check("MM307")
def precision_is_chosen(context: Context) -> Iterator[Found]:
    if context.recipe.dtype or context.recipe.kind != "merge":
        return
    models = _two_or_more(context)
    found = {ref: dtype for ref, model in models.items() if (dtype := main_dtype(model))}
    if len(set(found.values())) > 1:
        shown = ", ".join(f"{ref} {DTYPES.get(dtype, dtype)}" for ref, dtype in found.items())
        yield Found(f"the sources have different dtypes and the recipe sets none: {shown}", "dtype")


@check("MM308")
def checkpoints_are_whole(context: Context) -> Iterator[Found]:
    for where, ref in _each(context):
        found = context.probe(ref)
        if isinstance(found, Malformed):
            yield Found(found.message, where, found.next_step)


@check("MM309")
def heads_are_tied_alike(context: Context) -> Iterator[Found]:
    models = _two_or_more(context)
    tied = {ref: model.tied for ref, model in models.items()}
    if len(set(tied.values())) > 1:
        apart = ", ".join(str(ref) for ref, flag in tied.items() if not flag)
        yield Found(f"{apart} has an output head of its own, the other sources tie it to the embedding", "base_model")


@check("MM311")
def tokens_agree(context: Context) -> Iterator[Found]:
    if has_tokenizer(context):
        return
    models = _two_or_more(context)
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


@check("MM315")
def sources_are_here(context: Context) -> Iterator[Found]:
    for where, ref in _each(context):
        if absent(context.probe(ref)):
            yield Found(f"{ref.base_ref} is not on this machine: its layers, tensors and sizes were not checked", where)
    for where, ref in context.named():
        if ref.adapter_ref and absent(context.probe_adapter(ref.adapter_ref)):
            yield Found(f"{ref.adapter_ref} is not on this machine, so the adapter was not checked", where)


@check("MM316")
def paths_are_absolute(context: Context) -> Iterator[Found]:
    for where, ref in context.named():
        for part in (ref.base, ref.adapter):
            if part and not context.is_stage(ref) and is_relative(part, context.folder):
                text = f"{part!r} is relative to {context.folder}"
                yield Found(text, where, f"write {(context.folder / Path(part).expanduser()).resolve()}")


@check("MM317")
def one_set_of_weights(context: Context) -> Iterator[Found]:
    for ref, model in context.opened().items():
        if model.stored.shadowed_by:
            yield Found(f"{model.folder} holds a sharded checkpoint and {model.stored.shadowed_by}", _where(context, ref))


def is_relative(part: str, folder: Path) -> bool:
    """Whether a name is a path relative to `folder`: it looks like one, or something is there."""
    if part.startswith("demo:") or Path(part).is_absolute() or part.startswith("~"):
        return False
    return part.startswith(".") or (not is_hub_id(part) and (folder / part).exists()) or (folder / part).exists()


def has_tokenizer(context: Context) -> bool:
    return context.recipe.tokenizer is not None or context.recipe.tokenizer_source is not None


def vocabulary_rows(model: Checkpoint) -> int | None:
    """Rows of the embedding as they are stored; the config's figure only when no embedding is found."""
    for name, tensor in model.tensors.items():
        if name.endswith(("embed_tokens.weight", "wte.weight", "word_embeddings.weight")) and tensor.shape:
            return tensor.shape[0]
    return config_field(model.config, "vocabulary")


def main_dtype(model: Checkpoint) -> str | None:
    by: dict[str, int] = {}
    for tensor in model.tensors.values():
        by[tensor.dtype] = by.get(tensor.dtype, 0) + tensor.nbytes
    return max(by, key=lambda dtype: by[dtype], default=None)


def _each(context: Context) -> Iterator[tuple[str, ModelRef]]:
    """Every full model once, at the first place that names it."""
    seen = set()
    for where, ref in context.named():
        if ref.base_ref not in seen and not context.is_stage(ref):
            seen.add(ref.base_ref)
            yield where, ref


def _two_or_more(context: Context) -> dict[ModelRef, Checkpoint]:
    """The opened models, one for each full model named. Raises `Unknown` when there is nothing to compare."""
    opened: dict[str, tuple[ModelRef, Checkpoint]] = {}
    for ref, model in context.opened().items():
        opened.setdefault(ref.base_ref, (ref, model))
    if not opened or (len(opened) < 2 and not context.all_here()):
        raise Unknown("fewer than two sources are on this machine")
    return dict(opened.values())


def _where(context: Context, ref: ModelRef) -> str:
    return next((where for where, named in context.named() if named == ref), "")


def _is_vocabulary(name: str) -> bool:
    return any(part in name for part in ("embed_tokens", "lm_head", "wte", "word_embeddings", "embed_out", "output.weight"))


def _optional(name: str) -> bool:
    """Tensors that some tools write and others leave out without harm."""
    return _is_vocabulary(name) or name.endswith(("rotary_emb.inv_freq", "masked_bias", ".attn.bias"))


def _some(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
