"""MM3xx: whether each source is here, and can be opened. What is absent stays undecided."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from mcp_server.errors import Malformed, NotAllowed, NotAModel, NotFound
from mcp_server.formats.recipe import ModelRef
from mcp_server.steps.validate.context import Context, absent
from mcp_server.steps.validate.form import PLACEHOLDER, WINDOWS
from mcp_server.steps.validate.registry import Found, check

WITHOUT_IT: Final = "one adapter can be made of these adapters without their base: merge with --output adapter"


def _carries_adapters_alone(context: Context, ref: ModelRef) -> bool:
    """Whether every source is an adapter, and this is the model under them."""
    sources = [source.model for _, source in context.sources()]
    return all(model.adapter_ref for model in sources) and any(model.base_ref == ref.base_ref for model in sources)


@check("MM301")
def source_exists(context: Context) -> Iterator[Found]:
    seen = set()
    for where, ref in context.named():
        if context.is_stage(ref) or ref.base_ref in seen or PLACEHOLDER.search(str(ref)) or WINDOWS.search(str(ref)):
            continue
        seen.add(ref.base_ref)
        found = context.probe(ref)
        if isinstance(found, NotFound | NotAllowed) and not absent(found):
            step = f"{found.next_step}; {WITHOUT_IT}" if _carries_adapters_alone(context, ref) else found.next_step
            yield Found(found.message, where, step)
    for where, ref in context.named():
        if ref.adapter_ref and ref.adapter_ref not in seen:
            seen.add(ref.adapter_ref)
            adapter = context.probe_adapter(ref.adapter_ref)
            if isinstance(adapter, NotFound | NotAllowed) and not absent(adapter):
                yield Found(adapter.message, where, adapter.next_step)


@check("MM302")
def source_can_be_merged(context: Context) -> Iterator[Found]:
    for where, ref in context.full_models():
        found = context.probe(ref)
        if isinstance(found, NotAModel) and found.details.get("kind") != "lora":
            yield Found(found.message, where, found.next_step)


@check("MM308")
def checkpoints_are_whole(context: Context) -> Iterator[Found]:
    for where, ref in context.full_models():
        found = context.probe(ref)
        if isinstance(found, Malformed):
            yield Found(found.message, where, found.next_step)


@check("MM315")
def sources_are_here(context: Context) -> Iterator[Found]:
    for where, ref in context.full_models():
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
        if model.shadowed_by:
            yield Found(f"{model.folder} holds a sharded checkpoint and {model.shadowed_by}", context.where(ref))


def is_relative(part: str, folder: Path) -> bool:
    """Whether a name is a path relative to `folder`: it looks like one, or something is there."""
    if part.startswith("demo:") or Path(part).is_absolute() or part.startswith("~"):
        return False
    return part.startswith(".") or (folder / part).exists()
