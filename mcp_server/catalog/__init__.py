"""The catalogue: what is known about merging, as checked data. `load()` is cached; `threshold("name")` is its number."""

from __future__ import annotations

import functools

from mcp_server.catalog.loader import read_rules
from mcp_server.catalog.models import Catalog, Strategy
from mcp_server.errors import Malformed, NotFound, did_you_mean
from mcp_server.system import paths

__all__ = ["Catalog", "Strategy", "load", "strategy", "threshold"]


@functools.cache
def load() -> Catalog:
    """The checked catalogue. Raises `Malformed` with the first problem; `model-merging check` lists them all."""
    loaded = read_rules(paths.RULES)
    if loaded.problems:
        file, problem = loaded.problems[0]
        more = f" ({len(loaded.problems) - 1} more problems)" if len(loaded.problems) > 1 else ""
        raise Malformed(f"rules/{file}: {problem}{more}", "run `model-merging check`, which lists every problem")
    return loaded.catalog()


def threshold(name: str) -> float:
    """The number of a named threshold (rules/thresholds.yaml says why and where it comes from)."""
    return load().threshold(name)


def strategy(name: str) -> Strategy:
    """A strategy by id. Raises `NotFound` with what was probably meant."""
    known = load().strategies
    if name not in known:
        raise NotFound(f"there is no strategy {name!r}.{did_you_mean(name, known)}", f"known: {', '.join(sorted(known))}")
    return known[name]
