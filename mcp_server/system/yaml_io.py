"""Read YAML that somebody else wrote: scenarios, plans, recipes.

YAML can name Python objects, expand a page of text into gigabytes, nest until the parser overflows, and drop the first of two
equal keys without a word. Everything here that reads YAML comes through `load_yaml`, which refuses all four and says on which
line. Numbers follow YAML 1.1 like mergekit's own reader, so both read the same recipe (`1e-5` is a string there: write `1.0e-5`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import yaml

from mcp_server.errors import BadInput, Malformed, NotFound

MAX_BYTES: Final = 1_000_000
MAX_DEPTH: Final = 50
MAX_ALIASES: Final = 100
MAX_NODES: Final = 200_000
"""After aliases are expanded: a guard against small files that stand for huge ones."""

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_MERGE_TAG: Final = "tag:yaml.org,2002:merge"


def load_yaml(text: str, what: str) -> Any:
    """Parse one YAML document; `what` names it in messages ("the scenario", "recipe.yml"). Raises `Malformed`."""
    documents = load_yaml_all(text, what)
    if len(documents) > 1:
        raise Malformed(f"{what} holds {len(documents)} YAML documents, one is expected", "remove the '---' between them")
    return documents[0] if documents else None


@dataclass(frozen=True)
class Document:
    """One YAML document: its value, and the nodes that say where in the text each part of it stands."""

    value: Any
    node: yaml.Node

    @cached_property
    def homes(self) -> frozenset[str]:
        """Keys at the top whose values hold an anchor that another key's value takes up by an alias."""
        first: dict[int, str] = {}
        found = set()
        for key, value in self.node.value if isinstance(self.node, yaml.MappingNode) else ():
            for identity in _identities(value):
                if (home := first.setdefault(identity, key.value)) != key.value:
                    found.add(str(home))
        return frozenset(found)


def _identities(node: yaml.Node) -> Iterator[int]:
    yield id(node)
    for child in node.value if isinstance(node, yaml.CollectionNode) else ():
        for part in child if isinstance(child, tuple) else (child,):
            yield from _identities(part)


def load_yaml_all(text: str, what: str) -> list[Any]:
    """The values of a stream of YAML documents (mergekit-multi recipes hold several). Raises `Malformed` with the line."""
    return [document.value for document in read_documents(text, what)]


def read_documents(text: str, what: str) -> list[Document]:
    """Parse a stream of YAML documents. Raises `Malformed` with the line and column."""
    size = len(text.encode("utf-8", errors="surrogatepass"))
    if size > MAX_BYTES:
        raise Malformed(f"{what} is {size:,} bytes long, which exceeds the limit of {MAX_BYTES:,}", "is it the right file?")
    try:
        _check_events(text, what)
        loader = _Loader(text)
        try:
            documents = []
            while loader.check_node():
                node = loader.get_node()
                _Size(what).of(node, 1)
                documents.append(Document(loader.construct_document(node), node))
            return documents
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        problem = (error.problem or error.context or "it cannot be parsed").replace("\n", " ")
        mark = error.problem_mark or error.context_mark
        raise _malformed(what, *_in_plain_words(text, problem, mark), mark) from error
    except yaml.YAMLError as error:
        raise Malformed(f"{what} is not YAML: {' '.join(str(error).split())[:200]}", "save it as UTF-8 text") from error
    except (ValueError, OverflowError) as error:
        # A date such as 2024-13-45, an integer of ten thousand digits, a lone surrogate: legal to the grammar, not to a value.
        problem = str(error)[:200]
        raise Malformed(f"{what} holds a value that cannot be read: {problem}", "put it in quotes if it is text") from error


def _check_events(text: str, what: str) -> None:
    """Depth, aliases and tags, before anything is built."""
    depth = aliases = 0
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > MAX_DEPTH:
                raise _malformed(what, f"it is nested deeper than {MAX_DEPTH} levels", "correct that line", event.start_mark)
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        elif isinstance(event, yaml.AliasEvent):
            aliases += 1
            if aliases > MAX_ALIASES:
                raise _malformed(what, f"it uses more than {MAX_ALIASES} aliases (*name)", "correct that line", event.start_mark)
        tag = getattr(event, "tag", None)
        if tag is not None:
            raise _malformed(
                what, f"the tag {tag!r} is not allowed; only plain values are read", "correct that line", event.start_mark
            )


class _Size:
    """Expanded size and depth of a node graph, each node measured once; refuses cycles and repeated keys on the way."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.known: dict[int, tuple[int, int]] = {}
        self.open: set[int] = set()

    def of(self, node: yaml.Node, level: int) -> tuple[int, int]:
        key = id(node)
        if key in self.open:
            raise _malformed(self.what, "an alias refers to the value that it is part of", "correct that line", node.start_mark)
        if key in self.known:
            nodes, depth = self.known[key]
        else:
            self.open.add(key)
            nodes, depth = 1, 0
            for child in self._children(node):
                child_nodes, child_depth = self.of(child, level + 1)
                nodes, depth = nodes + child_nodes, max(depth, 1 + child_depth)
            self.open.discard(key)
            self.known[key] = nodes, depth
        if nodes > MAX_NODES or level + depth > MAX_DEPTH + 1:
            raise _malformed(
                self.what,
                f"with its aliases expanded it is larger than {MAX_NODES:,} values",
                "correct that line",
                node.start_mark,
            )
        return nodes, depth

    def _children(self, node: yaml.Node) -> list[yaml.Node]:
        if isinstance(node, yaml.SequenceNode):
            return list(node.value)
        if not isinstance(node, yaml.MappingNode):
            return []
        seen: dict[tuple[str, str], yaml.Node] = {}
        for name, _ in node.value:
            if not isinstance(name, yaml.ScalarNode):
                raise _malformed(
                    self.what, "a key is a list or a table; keys are plain names", "correct that line", name.start_mark
                )
            if name.tag == _MERGE_TAG:
                continue
            if (name.tag, name.value) in seen:
                first = seen[name.tag, name.value].start_mark
                line = f" (first on line {first.line + 1})" if first else ""
                raise _malformed(self.what, f"the key {name.value!r} appears twice{line}", "correct that line", name.start_mark)
            seen[name.tag, name.value] = name
        return [part for pair in node.value for part in pair]


_AT: Final = {
    "\t": ("a tab stands where YAML takes spaces only", "indent with spaces"),
    "`": ("it is fenced as Markdown", "remove the lines of ``` or ~~~, and whatever stands around them"),
    "@": ("a value begins with @, which YAML keeps for itself", "put the value in quotes"),
    "%": ("a value begins with %, which YAML keeps for itself", "put the value in quotes"),
}
"""A character that begins no YAML token → what it most likely is, and what to do."""


def _in_plain_words(text: str, problem: str, mark: Any) -> tuple[str, str]:
    """What is wrong and the next step, for faults whose words in the YAML library name neither."""
    if "cannot start any token" in problem and mark and (known := _AT.get(text[mark.index : mark.index + 1])):
        return known
    lines = text.splitlines()[: mark.line + 1 if mark else 0]
    if any(line.lstrip().startswith(("```", "~~~")) for line in lines):
        return _AT["`"]
    if any(set(line[: len(line) - len(line.lstrip())]) - set(" \t") for line in lines):
        return "a space of another kind (no-break, or wide) stands where YAML takes plain ones", "indent with plain spaces"
    if "unknown escape character" in problem or "did not find expected hexdecimal number" in problem:
        return "a backslash in double quotes begins an escape", "use single quotes, or / instead of the backslash"
    return problem, "correct that line"


def _malformed(what: str, problem: str, next_step: str, mark: Any) -> Malformed:
    where = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
    place = {"line": mark.line + 1, "column": mark.column + 1} if mark else {}
    return Malformed(f"{what} cannot be read{where}: {problem}", next_step, **place)


def read_text(path: Path, what: str) -> str:
    """The text of a file of at most 1 MB; the size is checked before anything is read."""
    try:
        size = path.stat().st_size
        if path.is_dir():
            raise BadInput(f"{path} is a folder, {what} is a file", "name the YAML file inside it")
        if size > MAX_BYTES:
            raise Malformed(f"{path} is {size:,} bytes long, which exceeds the limit of {MAX_BYTES:,}", "is it the right file?")
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as missing:
        raise NotFound(f"{path} does not exist", f"check the path of {what}") from missing
    except UnicodeDecodeError as error:
        raise Malformed(f"{path} is not UTF-8 text (byte {error.start})", "save it as UTF-8") from error
    except OSError as error:
        raise NotFound(f"{path} cannot be read: {error.strerror}", "check the path and its permissions") from error
