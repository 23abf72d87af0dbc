"""What the tensors of a base are called in memory, where PEFT looks for what an adapter changes. Imports no numpy."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from mcp_server.engine.plan import MergePlan
from mcp_server.formats.adapter_file import KEY, bare, saved_name
from mcp_server.formats.checkpoint import Checkpoint
from mcp_server.formats.identity import architectures
from mcp_server.formats.memory_names import in_memory

_PREFIXES: Final = ("model", "transformer", "backbone")
"""What transformers' classes call the model under their head, where it is not called by its kind (bert, gpt_neox)."""


def names_in_memory(plan: MergePlan, base: Checkpoint) -> dict[str, str]:
    """Stored name → name in memory, by which PEFT looks adapters up; the stored name where a tensor is a part of another.

    A base that is not here has its names from the adapters, which are those in memory.
    """
    names = {tensor.name: tensor.name for tensor in plan.tensors}
    for name, held in in_memory(base.config, base.tensors).items() if base.headers else ():
        if len(held.pieces) == 1 and held.pieces[0].region is None and not held.obstacle:
            names[held.pieces[0].name] = name
    return names | _with_class_prefix(plan, base, names)


def _with_class_prefix(plan: MergePlan, base: Checkpoint, names: Mapping[str, str]) -> dict[str, str]:
    """Adapted tensors of a base that is stored without its class's prefix (h.0 for GPT-2's transformer.h.0).

    transformers puts it before them on loading, so adapters have it. Other prefixes come from other models that an adapter was
    trained in (language_model.), and mean nothing to this class.
    """
    kind = re.sub(r"\W|_", "", str(base.config.get("model_type", "")))
    bare_class = any(re.search(r"(?<!Head)(?<!Heads)Model$", name) for name in architectures(base.config))
    stored_as = {name: stored for stored, name in names.items()}
    found: dict[str, str] = {}
    for source in plan.sources.values():
        for header in source.adapter.headers.values() if source.adapter and not bare_class else ():
            for key in map(bare, header.tensors):
                match = KEY.match(key)
                name = f"{match['module'].replace('.base_layer', '')}.weight" if match else saved_name(key)
                prefix, _, rest = name.partition(".")
                of_class = prefix in _PREFIXES or prefix.replace("_", "") in kind
                if of_class and rest in stored_as and name not in stored_as:
                    found[stored_as[rest]] = name
    return found
