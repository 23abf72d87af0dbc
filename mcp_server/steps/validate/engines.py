"""MM330, MM331: what the streaming engine's own plan says of the sources, so that nothing is found only in the job."""

from __future__ import annotations

from collections.abc import Iterator

from mcp_server.engine.coverage import covers
from mcp_server.errors import MergingError
from mcp_server.formats.checkpoint import tensors_of
from mcp_server.formats.recipe import ModelRef
from mcp_server.formats.recipe.rewrite import rewrite_refs
from mcp_server.formats.refs import is_hub_id, resolve_ref
from mcp_server.formats.tensor_names import main_stack, stacks
from mcp_server.schemas.limits import MAX_PLANNED
from mcp_server.steps.validate.context import Context, Unknown
from mcp_server.steps.validate.registry import Found, check


@check("MM330")
def the_plan_is_possible(context: Context) -> Iterator[Found]:
    found = plan_of(context)
    if isinstance(found, MergingError):
        yield Found(found.message, "", found.next_step)


@check("MM331")
def mergekit_knows_the_model(context: Context) -> Iterator[Found]:
    """Only mergekit does the recipe, and the model has parts that its templates may not know."""
    found = plan_of(context)
    if not isinstance(found, list) or not found:
        return
    for ref, model in context.opened().items():
        parts = stacks(model.tensors)
        if len(parts) > 1 or main_stack(parts) is None:
            yield Found(
                f"only mergekit does this ({'; '.join(found)}), and {ref} has several stacks of layers "
                f"({', '.join(parts)}), of which mergekit may leave some out",
                "",
            )
            return


def plan_of(context: Context) -> list[str] | MergingError:
    """Why only mergekit can do the recipe ([]: the streaming engine does it), or what is wrong for every engine.

    Raises `Unknown` when the recipe is no single merge, has errors, or names a model that is not here.
    """
    if context.recipe.kind != "merge" or context.problems or not context.recipe.text or not context.recipe.groups():
        raise Unknown("the recipe is no single merge that could be read")
    if not context.all_here():
        raise Unknown("a source is not on this machine")
    if (count := tensors_of(context.opened().values())) > MAX_PLANNED:
        raise Unknown(f"the sources hold {count:,} tensors; more than {MAX_PLANNED:,} are matched when the merge starts")
    if context.plan is None:
        try:
            context.plan = covers(rewrite_refs(context.recipe.text, lambda ref: _local(ref, context)))
        except MergingError as error:
            context.plan = error
    return context.plan


def _local(ref: ModelRef, context: Context) -> ModelRef:
    found: dict[str, str | None] = {}
    for name, part, pinned in (("base", ref.base, "revision"), ("adapter", ref.adapter, "adapter_revision")):
        if part is not None:
            found[name] = place = resolve_ref(part, context.folder, getattr(ref, pinned))
            if not is_hub_id(place):
                found[pinned] = None  # the folder is that revision's
    return ref.model_copy(update=found)
