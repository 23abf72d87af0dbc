"""MM4xx: LoRA adapters, and whether they fit the base that they are put on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mcp_server.errors import Incompatible, Malformed, MergingError, NotAModel, Unsupported
from mcp_server.formats.adapter_folder import AdapterFolder
from mcp_server.formats.adapter_info import named_base
from mcp_server.formats.adapter_kinds import refuse_unsupported
from mcp_server.formats.checkpoint import Checkpoint
from mcp_server.formats.lora import Adapter, open_adapter
from mcp_server.formats.recipe import ModelRef, keeps_ties
from mcp_server.formats.refs import resolve_ref
from mcp_server.steps.validate.context import Context
from mcp_server.steps.validate.registry import Found, check


@check("MM401")
def bare_adapter(context: Context) -> Iterator[Found]:
    for where, ref in context.named():
        found = context.probe(ref)
        if ref.adapter is None and isinstance(found, NotAModel) and found.details.get("kind") == "lora":
            base = base_for(context, ref)
            example = f"{base}+{ref.base}" if base else f"BASE+{ref.base}"
            yield Found(f"{ref.base} is a LoRA adapter, not a model", where, f"write {example}")


@check("MM402")
def adapter_of_this_base(context: Context) -> Iterator[Found]:
    for where, ref, adapter, model in _pairs(context):
        base = named_base(adapter.config)
        if base and model and not _same_model(base, ref, model):
            text = f"{ref.adapter} was trained on {base}, and is put on {ref.base_ref}"
            yield Found(text, where)


@check("MM403")
def adapter_fits(context: Context) -> Iterator[Found]:
    yield from _refused(context, Incompatible)


@check("MM404")
def adapter_can_be_merged(context: Context) -> Iterator[Found]:
    yield from _refused(context, Unsupported)


@check("MM405")
def parts_are_in_order(context: Context) -> Iterator[Found]:
    for where, ref in context.named():
        if ref.adapter_ref is None:
            continue
        base, adapter = context.probe(ref), context.probe_adapter(ref.adapter_ref)
        if isinstance(adapter, (NotAModel, Malformed)):
            yield Found(adapter.message, where, adapter.next_step)
        elif isinstance(adapter, AdapterFolder) and isinstance(base, Checkpoint):
            refused = read_on(context, ref, adapter, base)
            if isinstance(refused, (NotAModel, Malformed)):
                yield Found(refused.message, where, refused.next_step)
        if isinstance(base, NotAModel) and base.details.get("kind") == "lora":
            yield Found(f"{ref.base_ref} is a LoRA adapter; the part before '+' is the full model", where, "write BASE+ADAPTER")


@check("MM406")
def adapter_is_read_with_care(context: Context) -> Iterator[Found]:
    for where, ref, adapter, model in _pairs(context):
        found = read_on(context, ref, adapter, model) if model else None
        for note in found.notes if isinstance(found, Adapter) else ():
            yield Found(note, where)


@check("MM408")
def adapter_cache(context: Context) -> Iterator[Found]:
    adapters = dict.fromkeys(ref.adapter for _, ref in context.named() if ref.adapter)
    if adapters:
        yield Found(
            f"{len(adapters)} adapter(s) are named", "", "run it with `model-merging merge`, which needs no adapter cache"
        )


def base_for(context: Context, ref: ModelRef) -> str | None:
    """The base that a bare adapter belongs to: the recipe's, if it is a model, else the one that the adapter's config names."""
    recipe_base = context.recipe.base
    if recipe_base and recipe_base != ref and recipe_base.adapter is None:
        found = context.probe(recipe_base)
        if not (isinstance(found, NotAModel) and found.details.get("kind") == "lora"):
            return recipe_base.base_ref
    adapter = context.probe_adapter(ref.base_ref)
    return named_base(adapter.config) if isinstance(adapter, AdapterFolder) else None


def read_on(context: Context, ref: ModelRef, adapter: AdapterFolder, model: Checkpoint) -> Adapter | MergingError:
    """The adapter as a merge reads it, or the refusal that a merge would end with; read once."""
    if str(ref) not in context.adapted:
        try:
            merged = keeps_ties(context.recipe.groups(), ref)
            context.adapted[str(ref)] = open_adapter(str(adapter.folder), model.tensors, model.config, as_merged=merged)
        except MergingError as error:
            context.adapted[str(ref)] = error
    return context.adapted[str(ref)]


def _refused(context: Context, kind: type[MergingError]) -> Iterator[Found]:
    """What the reader of adapters refuses, in its own words."""
    for where, ref, adapter, model in _pairs(context):
        found = read_on(context, ref, adapter, model) if model else _alone(adapter)
        if isinstance(found, kind):
            yield Found(found.message, where, found.next_step)


def _alone(adapter: AdapterFolder) -> MergingError | None:
    """What can be told of an adapter whose base is not here."""
    try:
        refuse_unsupported(str(adapter.folder), adapter.config)
    except MergingError as error:
        return error
    return None


def _pairs(context: Context) -> Iterator[tuple[str, ModelRef, AdapterFolder, Checkpoint | None]]:
    """Every base+adapter once, with the adapter open and the base if it could be opened."""
    seen = set()
    for where, ref in context.named():
        if ref.adapter_ref and str(ref) not in seen:
            seen.add(str(ref))
            adapter = context.probe_adapter(ref.adapter_ref)
            if isinstance(adapter, AdapterFolder):
                yield where, ref, adapter, context.model(ref)


def _same_model(named: str, ref: ModelRef, model: Checkpoint) -> bool:
    """Whether the base that an adapter's config names is the one it is put on: by path, by hub id, or by its last part.

    Trainers record the path on their machine, so only names that end alike can be told to be the same, or both to be unlike.
    """
    if resolve_ref(named, Path.cwd()) == str(model.folder):
        return True
    tails = {_tail(named)}
    return bool(tails & {_tail(ref.base), _tail(str(model.folder)), _tail(str(model.config.get("_name_or_path") or ""))})


def _tail(name: str) -> str:
    return name.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1].rsplit(":", 1)[-1].lower()
