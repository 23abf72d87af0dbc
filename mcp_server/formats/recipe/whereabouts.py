"""Where the models are that a recipe names: on this machine, on a hub, or still to be made."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from mcp_server.formats.recipe.rewrite import rewrite_refs
from mcp_server.formats.recipe.types import ModelRef
from mcp_server.formats.refs import is_hub_id, resolve_ref, unmade_demo

_PINNED: Final = {"base": "revision", "adapter": "adapter_revision"}
"""Part of a reference → what pins it."""


def places_of(ref: ModelRef, folder: Path) -> dict[str, str]:
    """`base` and `adapter`, as far as they are named → an absolute path, or the hub id when no copy at its revision is here.

    Raises as `resolve_ref`.
    """
    return {
        part: resolve_ref(named, folder, getattr(ref, pinned))
        for part, pinned in _PINNED.items()
        if (named := getattr(ref, part)) is not None
    }


def placed(ref: ModelRef, places: dict[str, str]) -> ModelRef:
    """The reference by its places. A folder is that of the revision that was asked for, so its pin goes."""
    unpinned = {_PINNED[part]: None for part, place in places.items() if not is_hub_id(place)}
    return ref.model_copy(update=places | unpinned)


def absent_from(recipe: str, *, bases: bool = True) -> list[str]:
    """What is to be made (`demo:…`) or fetched (a hub's id, with its revision) first; a wrong path is the linter's to name.

    Without `bases`, of the adapters alone.
    """
    found: dict[str, None] = {}

    def look(ref: ModelRef) -> ModelRef:
        for part, place in places_of(ref, Path.cwd()).items():
            if part == "base" and not bases:
                continue
            if is_hub_id(place):
                found[ref.base_ref if part == "base" else str(ref.adapter_ref)] = None
            elif (alias := unmade_demo(Path(place))) is not None:
                found[alias] = None
        return ref

    rewrite_refs(recipe, look)
    return list(found)
