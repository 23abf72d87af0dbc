"""Change a recipe's text where its values change, and nowhere else: comments, quotes, blank lines and order stay.

`edited` compares two values of one document and turns each difference into a replacement of the characters that spell it. What
it cannot write that way (a change behind an alias that others share, a block of text) it gives back as None.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import yaml

from mcp_server.errors import Malformed
from mcp_server.system.yaml_io import Document, read_documents


class Splice(NamedTuple):
    """Characters from `start` to `end` give way to `text`."""

    start: int
    end: int
    text: str


class _Cannot(Exception):
    """This difference has no small place in the text."""


def edited(text: str, documents: Sequence[Document], number: int, new: Any) -> str | None:
    """`text` with the value of document `number` changed to `new`, or None when that takes more than small replacements."""
    try:
        splices = _joined(sorted(set(_Differ(text).changes(documents[number].node, documents[number].value, new))))
        for before, after in itertools.pairwise(splices):
            if after.start < before.end:
                return None
        for splice in reversed(splices):
            text = text[: splice.start] + splice.text + text[splice.end :]
        wanted = [new if n == number else document.value for n, document in enumerate(documents)]
        found = [document.value for document in read_documents(text, "the corrected recipe")]
    except (_Cannot, Malformed):
        return None
    return text if repr(found) == repr(wanted) or found == wanted else None


def _joined(splices: list[Splice]) -> list[Splice]:
    """Sorted splices; a line that is added behind one that goes takes its place."""
    found: list[Splice] = []
    for splice in splices:
        last = found[-1] if found else None
        if last and splice.start == splice.end and splice.start < last.end and not last.text and splice.text[:1] in "\r\n":
            newline = "\r\n" if splice.text.startswith("\r") else "\n"
            found[-1] = Splice(last.start, last.end, splice.text.removeprefix(newline) + newline)
        else:
            found.append(splice)
    return found


@dataclass(frozen=True)
class _Entry:
    """A key with its value in the text."""

    key: yaml.ScalarNode
    node: yaml.Node
    value: Any


@dataclass
class _Differ:
    text: str
    moved: dict[str, list[_Entry]] = field(default_factory=dict)
    """What goes from one place, by name: if it comes back elsewhere, it comes as it was written, with its comment."""
    written: set[int] = field(default_factory=set)
    """Which of those have come back."""

    def changes(self, node: yaml.Node, old: Any, new: Any) -> Iterator[Splice]:
        self._collect(node, old, new)
        yield from self._value(node, old, new)

    def _collect(self, node: yaml.Node, old: Any, new: Any) -> None:
        if isinstance(node, yaml.MappingNode) and isinstance(old, dict):
            for entry in _entries(node, old):
                name = entry.key.value
                inner = new.get(_name(entry, old)) if isinstance(new, dict) else None
                if not isinstance(new, dict) or _name(entry, old) not in new:
                    self.moved.setdefault(name, []).append(entry)
                self._collect(entry.node, entry.value, inner)
        elif isinstance(node, yaml.SequenceNode) and isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
            for part, before, after in zip(node.value, old, new, strict=True):
                self._collect(part, before, after)

    def _value(self, node: yaml.Node, old: Any, new: Any) -> Iterator[Splice]:
        if repr(old) == repr(new):
            return
        if isinstance(node, yaml.MappingNode) and isinstance(old, dict) and isinstance(new, dict):
            yield from self._table(node, old, new)
        elif isinstance(node, yaml.SequenceNode) and isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
            for part, before, after in zip(node.value, old, new, strict=True):
                yield from self._value(part, before, after)
        elif isinstance(node, yaml.ScalarNode) and node.style not in ("|", ">"):
            start, end = node.start_mark.index, node.end_mark.index
            gap = " " if start == end and self.text[start - 1 : start] == ":" else ""
            yield Splice(start, end, gap + _flow(new, node.style))
        else:
            raise _Cannot

    def _table(self, node: yaml.MappingNode, old: dict[Any, Any], new: dict[Any, Any]) -> Iterator[Splice]:
        entries = list(_entries(node, old))
        names = [_name(entry, old) for entry in entries]
        gone = [n for n, name in enumerate(names) if name not in new]
        come = {name: value for name, value in new.items() if name not in old}
        for entry, name in zip(entries, names, strict=True):
            if name in new:
                yield from self._value(entry.node, entry.value, new[name])
        for n in list(gone):
            twin = next((name for name, value in come.items() if repr(value) == repr(entries[n].value)), None)
            if twin is not None:  # the same value under another name
                key = entries[n].key
                yield Splice(key.start_mark.index, key.end_mark.index, _flow(twin, key.style))
                del come[twin]
                gone.remove(n)
        write = self._in_flow if node.flow_style else self._in_block
        yield from write(node, entries, gone, come)

    def _in_flow(self, node: yaml.MappingNode, entries: list[_Entry], gone: list[int], come: dict[Any, Any]) -> Iterator[Splice]:
        style = entries[0].key.style if entries else None
        added = ", ".join(
            f"{_flow(name, style)}: {self._raw(name, value) or _flow(value, style)}" for name, value in come.items()
        )
        for place, n in enumerate(gone):
            start, end = entries[n].key.start_mark.index, _end(entries[n].node)
            if added and place == 0:
                yield Splice(start, end, added)
            elif n + 1 < len(entries):
                yield Splice(start, entries[n + 1].key.start_mark.index, "")
            elif n:
                yield Splice(_end(entries[n - 1].node), end, "")
            else:
                yield Splice(start, end, "")
        if added and not gone:
            at = _end(entries[-1].node) if entries else node.end_mark.index - 1
            yield Splice(at, at, (", " if entries else "") + added)

    def _in_block(
        self, _node: yaml.MappingNode, entries: list[_Entry], gone: list[int], come: dict[Any, Any]
    ) -> Iterator[Splice]:
        if not entries:
            raise _Cannot
        indent = " " * entries[0].key.start_mark.column
        newline = "\r\n" if "\r\n" in self.text else "\n"
        added = (newline + indent).join(line for name, value in come.items() for line in self._lines(name, value))
        for place, n in enumerate(gone):
            start, end = entries[n].key.start_mark.index, self._line_end(_end(entries[n].node))
            if added and place == 0:
                yield Splice(start, end, self._with_comment(entries[n], added, newline))
                continue
            line = self.text.rfind("\n", 0, start) + 1
            if not self.text[line:start].strip():
                yield Splice(line, min(end + len(newline), len(self.text)), "")
            elif n + 1 < len(entries) and "#" not in self.text[_end(entries[n].node) : entries[n + 1].key.start_mark.index]:
                yield Splice(start, entries[n + 1].key.start_mark.index, "")  # the first key behind a dash
            else:
                raise _Cannot
        if added and not gone:
            at = self._line_end(_end(entries[-1].node))
            yield Splice(at, at, newline + indent + added)

    def _with_comment(self, entry: _Entry, added: str, newline: str) -> str:
        """What takes an entry's place, with the comment behind it unless that went elsewhere with its value."""
        end = _end(entry.node)
        rest = self.text[end : self._line_end(end)].rstrip()
        if id(entry.node) in self.written or not rest.lstrip().startswith("#"):
            return added
        first, *others = added.split(newline)
        return newline.join((first + rest, *others))

    def _lines(self, name: Any, value: Any) -> Iterator[str]:
        """`name: value` as a block; a value that was elsewhere in the text comes as it was written there."""
        if isinstance(value, dict) and value and self._raw(name, value) is None:
            yield f"{_flow(name)}:"
            for inner, part in value.items():
                yield from (f"  {line}" for line in self._lines(inner, part))
        else:
            yield f"{_flow(name)}: {self._raw(name, value, comment=True) or _flow(value)}"

    def _raw(self, name: Any, value: Any, *, comment: bool = False) -> str | None:
        for entry in self.moved.get(str(name), ()):
            start, end = entry.node.start_mark.index, _end(entry.node)
            if repr(entry.value) == repr(value) and "\n" not in self.text[start:end]:
                rest = self.text[end : self._line_end(end)] if comment else ""
                self.written.add(id(entry.node))
                return self.text[start:end] + (rest.rstrip() if rest.lstrip().startswith("#") else "")
        return None

    def _line_end(self, index: int) -> int:
        end = self.text.find("\n", index)
        end = len(self.text) if end < 0 else end
        return end - 1 if end and self.text[end - 1] == "\r" else end


def _entries(node: yaml.MappingNode, value: dict[Any, Any]) -> Iterator[_Entry]:
    """The keys of a table in the order of the text, without what a merge key (<<) brings in."""
    by_text = {str(key): key for key in value}
    for key, inner in node.value:
        if isinstance(key, yaml.ScalarNode) and (name := by_text.get(key.value)) is not None:
            yield _Entry(key, inner, value[name])
        elif not isinstance(key, yaml.ScalarNode) or key.value != "<<":
            raise _Cannot


def _name(entry: _Entry, table: dict[Any, Any]) -> Any:
    return entry.key.value if entry.key.value in table else next(key for key in table if str(key) == entry.key.value)


def _end(node: yaml.Node) -> int:
    """Where a value's own characters end. A block collection ends with its last part, not with the comments after it."""
    if isinstance(node, yaml.CollectionNode) and not node.flow_style and node.value:
        last = node.value[-1]
        return _end(last[1] if isinstance(last, tuple) else last)
    if isinstance(node, yaml.ScalarNode) and node.style in ("|", ">"):
        raise _Cannot
    return int(node.end_mark.index)


def _flow(value: Any, style: str | None = None) -> str:
    """A value on one line, in the quotes that were there before."""
    if style == '"' and not isinstance(value, float):
        return json.dumps(value, ensure_ascii=False)
    if style == "'" and isinstance(value, str):
        return "'" + value.replace("'", "''") + "'"
    return yaml.safe_dump([value], default_flow_style=True, allow_unicode=True, width=1_000_000).strip()[1:-1]
