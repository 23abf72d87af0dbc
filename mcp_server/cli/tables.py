"""Tables as plain text: aligned columns where they fit the terminal, else one block of `label value` lines for each row.

Off a terminal a table has its natural width, so that nothing that a script looks for is broken in two.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

from rich.cells import cell_len

GAP = "  "
NARROWEST_TEXT = 24
"""Columns that a wrapped text needs to stay readable; with less, the rows become blocks."""
UNKNOWN = "–"


def laid_out(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    width: int | None,
    *,
    right: Sequence[int] = (),
    whole: Sequence[int] = (),
) -> Iterator[str]:
    """The lines of a table, the header first. `width` null: as wide as it is; columns in `whole` are never wrapped.

    To fit, columns that are unknown in every row go first, then the longest text is wrapped, then rows become blocks.
    """
    shown = list(range(len(columns)))
    widths = [max(map(cell_len, (columns[i], *(row[i] for row in rows)))) for i in shown]
    if not any(columns):
        yield from _pairs(rows, width)
        return
    if width is not None and _total(widths, shown) > width:
        shown = [i for i in shown if i == 0 or any(row[i] != UNKNOWN for row in rows)]
    if width is not None and (excess := _total(widths, shown) - width) > 0:
        wrappable = [i for i in shown if i not in whole and i not in right]
        longest = max(wrappable, key=lambda i: widths[i], default=None)
        if longest is None or widths[longest] - excess < max(NARROWEST_TEXT, cell_len(columns[longest])):
            yield from _blocks(columns, rows, shown, width)
            return
        widths[longest] -= excess
    yield _line([_padded(columns[i], widths[i], i in right) for i in shown])
    for row in rows:
        wrapped = [_wrapped(row[i], widths[i]) for i in shown]
        for number in range(max(map(len, wrapped))):
            parts = [lines[number] if number < len(lines) else "" for lines in wrapped]
            yield _line([_padded(text, widths[i], i in right) for text, i in zip(parts, shown, strict=True)])


def _pairs(rows: Sequence[Sequence[str]], width: int | None) -> Iterator[str]:
    """A table without a header is a list of names and values."""
    label = max((cell_len(row[0]) for row in rows), default=0)
    for row in rows:
        yield from labelled(row[0], GAP.join(row[1:]), label, width)


def _blocks(columns: Sequence[str], rows: Sequence[Sequence[str]], shown: list[int], width: int) -> Iterator[str]:
    label = max(cell_len(columns[i]) for i in shown)
    for row in rows:
        yield from textwrap.wrap(row[shown[0]], width, break_long_words=False, break_on_hyphens=False) or [""]
        for i in shown[1:]:
            if row[i] != UNKNOWN and row[i]:
                yield from (f"  {line}" for line in labelled(columns[i], row[i], label, width - 2))


def labelled(label: str, text: str, room: int, width: int | None) -> Iterator[str]:
    """`label  text`, wrapped under itself; a word that is too long (a path, an id) stays whole."""
    lines = [text] if width is None else _wrapped(text, max(NARROWEST_TEXT, width - room - len(GAP)))
    for number, line in enumerate(lines):
        yield _line([_padded(label if number == 0 else "", room, False), line])


def _wrapped(text: str, width: int) -> list[str]:
    if cell_len(text) <= width:
        return [text]
    return textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False) or [""]


def _total(widths: list[int], shown: list[int]) -> int:
    return sum(widths[i] for i in shown) + len(GAP) * (len(shown) - 1)


def _padded(text: str, width: int, right: bool) -> str:
    blank = " " * max(0, width - cell_len(text))
    return blank + text if right else text + blank


def _line(parts: list[str]) -> str:
    return GAP.join(parts).rstrip()
