"""Where in the text of a recipe a value stands, by the path that messages show (models[0].parameters.weight)."""

from __future__ import annotations

from collections.abc import Sequence

import yaml

from mcp_server.formats.recipe.keys import Path, dotted
from mcp_server.system.yaml_io import Document

Place = tuple[int, int]
"""Line and column, both counted from 1."""


def places(documents: Sequence[Document]) -> dict[str, Place]:
    """Path → where its key (in a list: its entry) begins. The paths of several documents begin with stages[N]."""
    found: dict[str, Place] = {}
    for number, document in enumerate(documents):
        _walk(document.node, ("stages", number) if len(documents) > 1 else (), found)
    return found


def place_of(where: str, known: dict[str, Place]) -> Place | None:
    """The place of a path or, where there is nothing, of the nearest part of it that is there."""
    while where:
        if where in known:
            return known[where]
        where = where[: max(where.rfind("."), where.rfind("["), 0)]
    return known.get("")


def _walk(node: yaml.Node, path: Path, found: dict[str, Place]) -> None:
    """Each part of the text once, at the first path that leads to it through no alias."""
    found.setdefault(dotted(path), _place(node))
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            inner = (*path, key.value)
            found[dotted(inner)] = _place(key)
            _walk(value, inner, found)
    elif isinstance(node, yaml.SequenceNode):
        for number, entry in enumerate(node.value):
            _walk(entry, (*path, number), found)


def _place(node: yaml.Node) -> Place:
    return node.start_mark.line + 1, node.start_mark.column + 1
