"""The folder that a sweep is written to: which files are the sweep's, and when they may be replaced."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from mcp_server.errors import OutputExists
from mcp_server.formats.lineage import Lineage, lineage_of
from mcp_server.formats.provenance import not_ours
from mcp_server.formats.recipe import read_recipe
from mcp_server.formats.refs import resolve_ref
from mcp_server.schemas.job import SweepRequest
from mcp_server.schemas.plan import Plan
from mcp_server.steps.scenario import read_plan
from mcp_server.system.outputs import Kept, is_free, require_folder

FILES: Final = ("plan.yaml", "sweep.json", "sweep.md", "recipe.yml")
MERGED: Final = "merged"


def opened_plan(request: SweepRequest) -> tuple[Plan, Path]:
    """The plan, and the folder that relative paths in it and in the grid start from."""
    file = Path(request.plan)
    return read_plan(file), file.parent


def lineage_of_plan(plan: Plan, near: Path, first: str) -> Lineage:
    """Base and sources of a plan's candidates, by the scenario's names; `first` is the recipe of one of them."""
    sources = plan.scenario.sources or []
    names = {resolve_ref(source.ref.rpartition("+")[2], near): source.name for source in sources if source.ref and source.name}
    return lineage_of(read_recipe(first, "the first candidate"), names)


def require_sweep_place(out: Path) -> None:
    """Raise `OutputExists` unless `out` is free or an earlier sweep of ours, whose files are as it wrote them.

    Whatever else lies in it stays: a sweep replaces its own files one by one, and never the folder.
    """
    if is_free(out):
        return
    kept = Kept(out)
    if not out.is_dir() or "plan.yaml" not in kept.known:
        raise OutputExists(f"{out} is not empty and no earlier sweep of ours", "name an empty or a new folder")
    kept.require(FILES)
    require_folder(out / MERGED, overwrite=True, not_ours=not_ours)
