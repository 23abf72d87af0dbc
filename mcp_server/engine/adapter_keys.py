"""What the tensors of a base are called in memory, where PEFT looks for what an adapter changes. Imports no numpy."""

from __future__ import annotations

from mcp_server.engine.plan import MergePlan
from mcp_server.formats.checkpoint import Checkpoint
from mcp_server.formats.memory_names import in_memory


def names_in_memory(plan: MergePlan, base: Checkpoint) -> dict[str, str]:
    """Stored name → name in memory, by which PEFT looks adapters up; the stored name where a tensor is a part of another.

    A base that is not here has its names from the adapters, which are those in memory.
    """
    names = {tensor.name: tensor.name for tensor in plan.tensors}
    for name, held in in_memory(base.config, base.tensors).items() if base.headers else ():
        if len(held.pieces) == 1 and held.pieces[0].region is None and not held.obstacle:
            names[held.pieces[0].name] = name
    return names
