"""What a recipe names that is not on this machine."""

from __future__ import annotations

from pathlib import Path

from mcp_server.formats.recipe.read import read_recipe
from mcp_server.formats.refs import is_hub_id, resolve_ref, split_revision, unmade_demo


def absent_from(recipe: str, *, bases: bool = True) -> list[str]:
    """What is to be made (`demo:…`) or fetched (a hub's id, with its revision) first; a wrong path is the linter's to name.

    Without `bases`, of the adapters alone.
    """
    found: dict[str, None] = {}
    for ref in read_recipe(recipe).references():
        for part in filter(None, (ref.base_ref if bases or not ref.adapter else None, ref.adapter_ref)):
            name, revision = split_revision(part, Path.cwd())
            resolved = resolve_ref(name, Path.cwd(), revision)
            if is_hub_id(resolved):
                found[part] = None
            elif (alias := unmade_demo(Path(resolved))) is not None:
                found[alias] = None
    return list(found)
