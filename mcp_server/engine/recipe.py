"""A recipe as this engine plans it: read by `formats.recipe`, and held to what a plan relies on.

`models` and `slices` are one form here, a list of groups, exactly as mergekit's planner makes them: `models` is one group over
every layer, and a base that is not listed among the models joins as one more source. Keys that mergekit would ignore are errors,
because a misspelt `parameters` changes the result without a word.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mcp_server.errors import Malformed, Unsupported
from mcp_server.formats.recipe import Group, ModelRef, read_recipe

RUNNERS = {"moe": "mergekit-moe makes mixtures of experts", "multi": "mergekit-multi runs recipes of several stages"}


@dataclass(frozen=True, slots=True)
class Recipe:
    """A parsed recipe; `text` is what the user wrote, byte for byte. `refs` are the models it names, once each."""

    text: str
    method: str
    groups: tuple[Group, ...]
    refs: tuple[ModelRef, ...]
    base: ModelRef | None = None
    dtype: str | None = None
    out_dtype: str | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    chat_template: str | None = None
    tokenizer_source: str | None = None
    tokenizer: Mapping[str, Any] = field(default_factory=dict)
    has_modules: bool = False

    @property
    def donor(self) -> ModelRef:
        """The model whose config and tokenizer the output inherits."""
        return self.base or self.groups[0].sources[0].model


def parse_recipe(text: str) -> Recipe:
    """Read recipe text. Raises `Malformed` for what is no recipe, with the place and the value; `Unsupported` for no merge."""
    written = read_recipe(text, unread=True)
    if written.kind != "merge":
        raise Unsupported(f"{RUNNERS[written.kind]}, this engine does not", "use --engine mergekit")
    groups = written.groups()
    for group in groups:
        _check_layers(group)
    tokenizer = written.tokenizer or {}
    named = written.tokenizer_source or tokenizer.get("source")
    return Recipe(
        text=text,
        method=written.method or "",
        groups=groups,
        refs=written.references(),
        base=written.base,
        dtype=_dtype(written.dtype),
        out_dtype=_dtype(written.out_dtype),
        parameters=written.parameters,
        chat_template=written.chat_template,
        tokenizer_source=str(named) if named else None,
        tokenizer=tokenizer,
        has_modules=bool(written.modules),
    )


def _check_layers(group: Group) -> None:
    ranges = [(source.model, source.layer_range) for source in group.sources if source.layer_range is not None]
    for ref, (first, end) in ranges:
        if not 0 <= first < end:
            raise Malformed(f"layer_range [{first}, {end}] of {ref} holds no layer", "the end is exclusive and above the start")
    if len({end - first for _, (first, end) in ranges}) > 1:
        shown = ", ".join(f"{ref} [{first}, {end}]" for ref, (first, end) in ranges)
        raise Malformed(
            f"the sources of {group.where} have different numbers of layers: {shown}", "give them ranges of one length"
        )


def _dtype(value: str | None) -> str | None:
    return value and value.removeprefix("torch.")
