"""What transformers says of each of its model classes: how it names, turns, ties and stacks its tensors.

Copied from the installed transformers by `scripts/memory_names.py` into memory_names.json; run it again after an update.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from mcp_server.formats.identity import architectures


@dataclass(frozen=True)
class ClassFacts:
    """Of one class: conversions, Conv1D modules, which weight a tied one follows, stacks, and the name of its inner model."""

    known: bool = False
    rules: tuple[dict[str, Any], ...] = ()
    conv1d: tuple[str, ...] = ()
    transposed_experts: tuple[str, ...] = ()
    tied: tuple[tuple[str, str], ...] = ()
    stacks: tuple[tuple[str, ...], ...] = ()
    """Parameters of single modules that are stacks of matrices, in the order in which the modules define them."""
    prefix: str = ""
    own: frozenset[str] = frozenset()
    inside: frozenset[str] = frozenset()
    """`prefix` is the name of the model under its head; `own` and `inside` are how names begin in the class, and under it."""

    def with_prefix(self, name: str) -> str:
        """A stored name as the class has it: transformers puts the prefix before it or takes it off, if that is a name of it."""
        first, _, rest = name.partition(".")
        if rest and first == self.prefix and rest.partition(".")[0] in self.own:
            return rest
        return f"{self.prefix}.{name}" if first in self.inside and first not in self.own else name


@cache
def _table() -> dict[str, Any]:
    table: dict[str, Any] = json.loads(resources.files("mcp_server.formats").joinpath("memory_names.json").read_text("utf-8"))
    return table


def facts_of(config: Mapping[str, Any]) -> ClassFacts:
    """By the class that the config names, else by its model_type."""
    table = _table()
    names = [*architectures(config), str(table["types"].get(str(config.get("model_type")), ""))]
    found = next((table["classes"][name] for name in names if name in table["classes"]), None)
    if found is None:
        return ClassFacts()
    return ClassFacts(
        True,
        tuple(table["rules"][number] for number in found.get("rules", ())),
        tuple(found.get("conv1d", ())),
        tuple(found.get("transposed", ())),
        tuple((str(a), str(b)) for a, b in found.get("tied", {}).items()),
        tuple(tuple(map(str, names)) for names in found.get("stacks", ())),
        str(found.get("prefix", "")),
        frozenset(map(str, found.get("own", ()))),
        frozenset(map(str, found.get("inside", ()))),
    )


def is_conv1d(config: Mapping[str, Any], module: str, *, experts: bool = False) -> bool | None:
    """Whether transformers stores this module's weight (by its name in memory) as (in, out); None if its class is not known."""
    facts = facts_of(config)
    if not facts.known:
        return None
    name = layerless(module)
    entries = facts.transposed_experts if experts else facts.conv1d
    return any(name.endswith(entry) or entry.endswith(name) for entry in entries)


def layerless(name: str) -> str:
    """A name with N for every number."""
    return re.sub(r"(^|\.)\d+(?=\.|$)", r"\1N", name)
