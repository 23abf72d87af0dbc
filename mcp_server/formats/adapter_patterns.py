"""`rank_pattern` and `alpha_pattern`: which value an adapter's config gives a module, by PEFT's rule.

PEFT takes the first pattern, a regular expression, that matches the end of a module's name from a dot on. Nearly all patterns are
plain names, and one for every module is usual, so those are looked up by their text; the rest is tried one by one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from mcp_server.errors import Malformed, Unsupported

_LONGEST: Final = 500
_MOST_TRIED: Final = 200
"""Patterns that have to be tried one by one; real configs have a handful."""
_PLAIN: Final = re.compile(r"(?:[A-Za-z0-9_ -]|\.|\\\.)+")
_REPEATED_GROUP: Final = re.compile(r"\)[*+{]")
_REPEAT: Final = re.compile(r"[*+{]")
_MAX_REPEATS: Final = 3

_Lengths = tuple[int, ...]


class Patterns:
    """One table of patterns, sorted out once: `value` is what it gives a module.

    Patterns are regular expressions of whoever made the adapter. One that repeats a group, or repeats often, can take for ever on
    a name that does not match; such are refused. Raises `Malformed` or `Unsupported`.
    """

    def __init__(self, table: Any) -> None:
        if table and not isinstance(table, dict):
            raise Malformed(f"rank_pattern or alpha_pattern is {str(table)[:80]}, not a table", "save the adapter again")
        self._values = list(table.values()) if table else []
        self._plain: dict[int, dict[_Lengths, dict[str, int]]] = {}
        """Length → lengths between the dots, each of which stands for any character → the text without them → its place."""
        self._tried: list[tuple[int, re.Pattern[str]]] = []
        for place, pattern in enumerate(table or ()):
            self._add(place, str(pattern))

    def value(self, names: tuple[str, ...], default: Any) -> Any:
        """Of the first pattern that matches the end of one of a module's names; the default when none does."""
        found = [place for name in names if (place := self._first(name)) is not None] if self._values else []
        return self._values[min(found)] if found else default

    def _add(self, place: int, pattern: str) -> None:
        if _PLAIN.fullmatch(pattern):
            pieces = pattern.replace(r"\.", "\0").split(".")
            length, text = len(pieces) - 1 + sum(lengths := tuple(map(len, pieces))), "".join(pieces).replace("\0", ".")
            of_length = self._plain.setdefault(length, {})
            of_length.setdefault(lengths, {}).setdefault(text, place)
            too_many = len(of_length) > _MOST_TRIED
        else:
            self._tried.append((place, _compiled(pattern)))
            too_many = len(self._tried) > _MOST_TRIED
        if too_many:
            raise Unsupported(
                f"the adapter's config has {len(self._values):,} patterns, of which more than {_MOST_TRIED} would have to be "
                "tried one by one",
                "name the modules plainly in rank_pattern and alpha_pattern",
            )

    def _first(self, name: str) -> int | None:
        found = [
            place
            for end in _ends(name)
            for lengths, texts in self._plain.get(len(end), {}).items()
            if (place := texts.get(_without(end, lengths))) is not None
        ]
        best = min(found, default=None)
        for place, pattern in self._tried:
            if best is not None and place > best:
                break
            if pattern.match(name):
                return place
        return best


class Scales:
    """rank_pattern and alpha_pattern of one adapter's config."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.rank, self.alpha = Patterns(config.get("rank_pattern")), Patterns(config.get("alpha_pattern"))


def _compiled(pattern: str) -> re.Pattern[str]:
    if len(pattern) > _LONGEST or _REPEATED_GROUP.search(pattern) or len(_REPEAT.findall(pattern)) > _MAX_REPEATS:
        raise Unsupported(
            f"the pattern {pattern[:80]!r} in the adapter's config could take for ever to match", "name the modules plainly"
        )
    try:
        return re.compile(rf"(.*\.)?({pattern})$")
    except re.error as error:
        raise Malformed(f"the pattern {pattern[:80]!r} in the adapter's config is none: {error}", "save it again") from error


def _ends(name: str) -> Iterator[str]:
    """The name, and what follows each of its dots."""
    yield name
    place = name.find(".")
    while place >= 0:
        yield name[place + 1 :]
        place = name.find(".", place + 1)


def _without(text: str, lengths: _Lengths) -> str:
    """The pieces of these lengths that stand in a text, each with one character after it, put together."""
    start, parts = 0, []
    for length in lengths:
        parts.append(text[start : start + length])
        start += length + 1
    return "".join(parts)
