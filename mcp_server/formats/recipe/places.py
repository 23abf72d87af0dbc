"""Where in the text of a recipe a value stands, by the path that messages show (models[0].parameters.weight)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

import yaml

from mcp_server.system.yaml_io import Document

Place = tuple[int, int]
"""Line and column, both counted from 1."""
_ENTRY: Final = re.compile(r"\[(\d+)\]")


def place_of(where: str, documents: Sequence[Document]) -> Place | None:
    """Where the key of a path (in a list: its entry) begins; where there is nothing, the nearest part of it that is there.

    The paths of several documents begin with stages[N].
    """
    number = 0
    if len(documents) > 1:
        if (stage := re.match(r"stages\[(\d+)\]\.?", where)) is None:
            return None
        number, where = int(stage[1]), where[stage.end() :]
    if number >= len(documents):
        return None
    mark = node = documents[number].node
    while where:
        if isinstance(node, yaml.SequenceNode) and (entry := _ENTRY.match(where)) and int(entry[1]) < len(node.value):
            mark = node = node.value[int(entry[1])]
            where = where[entry.end() :].removeprefix(".")
            continue
        keys = node.value if isinstance(node, yaml.MappingNode) else ()
        # The longest name first: a name may hold a dot.
        fitting = [(key, value) for key, value in keys if re.match(re.escape(key.value) + r"(?:\.|\[|$)", where)]
        if not fitting:
            break
        mark, node = max(fitting, key=lambda pair: len(pair[0].value))
        where = where[len(mark.value) :].removeprefix(".")
    return mark.start_mark.line + 1, mark.start_mark.column + 1
