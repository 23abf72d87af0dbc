"""The tables of a recipe's raw text, each with the keys that mergekit reads in it, and the keys that it does not.

mergekit ignores an unknown key without a word, and a misspelt `parameters` then changes the result. The typed reading in `parse`
leaves such keys out as mergekit does; here they are found.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from mcp_server.core.recipe import keys

OWN: Final = "x-"
"""Keys with this prefix belong to the author: a home for YAML anchors."""
Level = Literal["top", "input", "slice", "module", "parameters", "filter", "tokenizer", "token", "expert"]
Path = tuple[Any, ...]
"""Keys and positions that lead to a value; keys are as YAML read them."""


@dataclass(frozen=True, slots=True)
class Table:
    """One table: where it is, what it holds, and the keys that mergekit reads in it. `parameters` are open: methods name them."""

    path: Path
    level: Level
    known: Sequence[str]
    content: dict[Any, Any]

    def unread(self) -> Iterator[str]:
        """Its keys that mergekit ignores, in the order of the text."""
        if self.level != "parameters":
            yield from (name for name in map(str, self.content) if name not in self.known and not name.startswith(OWN))


def dotted(path: Sequence[Any]) -> str:
    """A path as messages show it: models[0].parameters.weight."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return text.removeprefix(".")


def tables(document: Any, *, mixture: bool = False) -> Iterator[Table]:
    """Every table of one document at its place; what has another form there is left to `parse`, which refuses it."""
    if mixture:
        yield from _table((), document, "top", (*keys.MOE, "merge_method"))
        for name in ("experts", "shared_experts"):
            for number, entry in _entries(document, name):
                yield from _table((name, number), entry, "expert", keys.EXPERT)
        return
    yield from _table((), document, "top", keys.STAGE)
    yield from _parameters((), document)
    yield from _inputs((), document)
    for name, module in _content(_content(document).get("modules")).items():
        yield from _table(("modules", name), module, "module", keys.MODULE)
        yield from _parameters(("modules", name), module)
        yield from _inputs(("modules", name), module)
    tokenizer = _content(document).get("tokenizer")
    yield from _table(("tokenizer",), tokenizer, "tokenizer", keys.TOKENIZER)
    for token, entry in _content(_content(tokenizer).get("tokens")).items():
        yield from _table(("tokenizer", "tokens", token), entry, "token", keys.TOKEN)


def _inputs(path: Path, holder: Any) -> Iterator[Table]:
    for number, entry in _entries(holder, "models"):
        at = (*path, "models", number)
        yield from _table(at, entry, "input", keys.INPUT)
        yield from _parameters(at, entry)
    for number, slice_ in _entries(holder, "slices"):
        at = (*path, "slices", number)
        yield from _table(at, slice_, "slice", keys.SLICE)
        yield from _parameters(at, slice_)
        for inner, source in _entries(slice_, "sources"):
            place = (*at, "sources", inner)
            yield from _table(place, source, "input", keys.SLICE_INPUT)
            yield from _parameters(place, source)


def _parameters(path: Path, holder: Any) -> Iterator[Table]:
    at = (*path, "parameters")
    parameters = _content(holder).get("parameters")
    yield from _table(at, parameters, "parameters", ())
    for name, setting in _content(parameters).items():
        for place, entry in enumerate(setting) if isinstance(setting, list) else ():
            yield from _table((*at, name, place), entry, "filter", keys.FILTER)
        yield from _table((*at, name), setting, "filter", keys.FILTER)


def _table(path: Path, value: Any, level: Level, known: Sequence[str]) -> Iterator[Table]:
    if isinstance(value, dict):
        yield Table(path, level, known, value)


def _entries(holder: Any, name: str) -> Iterator[tuple[int, Any]]:
    value = _content(holder).get(name)
    if isinstance(value, list):
        yield from enumerate(value)


def _content(value: Any) -> dict[Any, Any]:
    return value if isinstance(value, dict) else {}
