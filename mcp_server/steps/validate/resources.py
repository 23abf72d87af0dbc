"""MM5xx: the output folder and its form, the disk and the memory. Only what was given is checked."""

from __future__ import annotations

from collections.abc import Iterator

from mcp_server.errors import MergingError, Unsupported
from mcp_server.schemas.estimate import Estimate
from mcp_server.steps.estimate import estimate
from mcp_server.steps.estimate.fp8 import plan_in_fp8
from mcp_server.steps.validate.context import Context, Unknown
from mcp_server.steps.validate.registry import Found, check
from mcp_server.system.machine import GIB, gib


@check("MM501")
def output_is_free(context: Context) -> Iterator[Found]:
    out = context.out
    if out is None:
        raise Unknown("no output was given")
    if out.is_file():
        yield Found(f"{out} is a file", "", "name a folder")
    elif out.is_dir() and any(out.iterdir()):
        yield Found(f"{out} exists and holds {sum(1 for _ in out.iterdir())} entries", "")


@check("MM502")
def disk_is_enough(context: Context) -> Iterator[Found]:
    if context.out is None:
        raise Unknown("no output was given")
    found = _estimate(context)
    free = found.disk_free_bytes
    needed = min((engine.disk_bytes for engine in found.engines.values() if engine.covers), default=0)
    if free is not None and needed > free:
        yield Found(f"the merge needs {gib(needed)} at {context.out}, {gib(free)} are free", "")


@check("MM503")
def memory_is_enough(context: Context) -> Iterator[Found]:
    if context.ram_gib is None:
        raise Unknown("no memory budget was given")
    found = _estimate(context)
    usable = {name: engine for name, engine in found.engines.items() if engine.covers}
    if usable and all(engine.peak_anon_bytes > context.ram_gib * GIB for engine in usable.values()):
        shown = ", ".join(f"{name} {gib(engine.peak_anon_bytes)}" for name, engine in usable.items())
        settings = [f"{k}: {v}" for engine in usable.values() for k, v in engine.settings.items()]
        yield Found(f"the budget is {context.ram_gib:g} GiB, the merge needs {shown}", "", "; ".join(settings))


@check("MM504")
def output_is_no_source(context: Context) -> Iterator[Found]:
    if context.out is None:
        raise Unknown("no output was given")
    out = context.out.resolve()
    for ref, model in context.opened().items():
        folder = model.folder.resolve()
        if out == folder or out in folder.parents or folder in out.parents:
            yield Found(f"the output {out} and the source {ref} ({folder}) are the same or one inside the other", "")


@check("MM505")
def form_is_possible(context: Context) -> Iterator[Found]:
    if context.output_format is None:
        raise Unknown("no output format was given")
    try:
        plan_in_fp8(context.recipe.text, context.folder)
    except Unsupported as no:
        yield Found(no.message, "", no.next_step)
    except MergingError as error:
        raise Unknown(f"the merge cannot be planned: {error.message}") from error


def _estimate(context: Context) -> Estimate:
    form = context.output_format
    try:
        return estimate(context.recipe.text, ram_gib=context.ram_gib, out=context.out, folder=context.folder, output_format=form)
    except MergingError as error:
        raise Unknown(f"the sizes are not known: {error.message}") from error
