"""Signals about what the sources stand on: their base and their architecture."""

from __future__ import annotations

import re

from mcp_server.catalog.signals.registry import signal
from mcp_server.catalog.signals.relations import values
from mcp_server.catalog.signals.sources import trained
from mcp_server.schemas.scenario import Scenario


def same_name(base: str) -> str:
    """A base's name without owner, upper case, and suffixes of quantised copies ('unsloth/llama-3-8b-bnb-4bit')."""
    last = base.rstrip("/").rpartition("/")[2].lower()
    return re.sub(r"^meta-|-(unsloth-)?bnb-4bit$|-hf$|-(gptq|awq)$", "", last)


@signal
def has_base(scenario: Scenario) -> bool | None:
    """Whether a common base exists: named, implied by adapters (each belongs to one), or said to be none (`base_model: none`)."""
    if scenario.base_model is not None:
        return scenario.base_model.lower() != "none"
    sources = [s for _, s in trained(scenario)]
    if sources and all(s.kind == "lora" or s.rank is not None or s.base for s in sources):
        return True
    return None


@signal
def base_named(scenario: Scenario) -> bool:
    """Whether the base's name or folder is known, not only that there is one."""
    return has_base(scenario) is True and (bool(scenario.base_model) or any(s.base for _, s in trained(scenario)))


@signal
def same_base(scenario: Scenario) -> bool | None:
    """Whether all sources were trained from one base: said, or seen from the bases' names."""
    said = values(scenario, "same_base")
    if said:
        return all(said)
    if has_base(scenario) is False:
        return None
    bases = [s.base for _, s in trained(scenario)] + ([scenario.base_model] if scenario.base_model else [])
    known = {same_name(b) for b in bases if b}
    if len(known) > 1:
        return False
    return True if known and (scenario.base_model or all(bases)) else None


@signal
def base_names(scenario: Scenario) -> str | None:
    """The bases that the sources name, as 'source: base'."""
    named = [f"{name}: {s.base or scenario.base_model}" for name, s in trained(scenario) if s.base or scenario.base_model]
    return "; ".join(named) or None


@signal
def base_names_agree(scenario: Scenario) -> bool | None:
    """Whether the names given for bases mean one model; unknown when fewer than two are given."""
    bases = [s.base for _, s in trained(scenario)] + [scenario.base_model]
    known = [same_name(b) for b in bases if b]
    return len(set(known)) == 1 if len(known) > 1 else None


@signal
def same_architecture(scenario: Scenario) -> bool | None:
    """Whether all sources have one architecture."""
    found = [s.architecture for _, s in trained(scenario)]
    known = {a for a in found if a}
    if len(known) > 1:
        return False
    # Sources of one base have its architecture, whether or not they say so.
    return True if (known and all(found)) or same_base(scenario) else None


@signal
def architectures(scenario: Scenario) -> str | None:
    """The architectures that the sources name, as 'source: architecture'."""
    return "; ".join(f"{name}: {s.architecture}" for name, s in trained(scenario) if s.architecture) or None
