"""What a merged folder says about itself: which base, which sources, which recipe."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from mcp_server.core.evaluation.next_try import Tried
from mcp_server.core.models.base import Frozen
from mcp_server.core.provenance import read_provenance, read_recipe_text
from mcp_server.core.recipe import MISSING, Recipe, as_number, read_recipe, resolve


class Lineage(Frozen):
    base: str | None = None
    sources: dict[str, str] = Field(default_factory=dict, description="short name → ref, as the recipe names it")
    tried: Tried = Field(default_factory=Tried)
    recipe: str = ""


def read_lineage(folder: Path) -> Lineage:
    """Base, sources and recipe of a merge made here or by mergekit; empty fields when the folder does not say."""
    provenance = read_provenance(folder)
    text = provenance.recipe if provenance else read_recipe_text(folder)
    if not text:
        return Lineage()
    recipe = read_recipe(text, f"the recipe of {folder.name}")
    names = {record.ref: record.name for record in provenance.sources if record.role != "base"} if provenance else {}
    return lineage_of(recipe, names)


def lineage_of(recipe: Recipe, names: dict[str, str] | None = None) -> Lineage:
    """`names` gives short names by ref; without it a source is called after its adapter or folder."""
    references = recipe.references()
    base = recipe.base or next((ref for ref in references if ref.adapter is None), None)
    others = [ref for ref in references if ref != base]
    sources: dict[str, str] = {}
    short: dict[str, str] = {}
    for ref in others:
        name = (names or {}).get(str(ref)) or (names or {}).get(ref.adapter or "") or Path(ref.adapter or ref.base).name
        while name in sources:
            name += "'"
        sources[name] = str(ref)
        short[str(ref)] = name
    base_text = str(base) if base else next((ref.base_ref for ref in others if ref.adapter), None)
    return Lineage(base=base_text, sources=sources, tried=_tried(recipe, short), recipe=recipe.text)


def _tried(recipe: Recipe, short: dict[str, str]) -> Tried:
    weights: dict[str, float] = {}
    for group in recipe.groups()[:1]:
        for source in group.others:
            value = as_number(resolve(group.settings("weight", source), "", default=None))
            if value is not None and str(source.model) in short:
                weights[short[str(source.model)]] = value
    scale = recipe.parameters.get("lambda", MISSING)
    return Tried(
        method=recipe.method,
        lambda_=as_number(scale) if scale is not MISSING else None,
        normalize=recipe.parameters.get("normalize") if isinstance(recipe.parameters.get("normalize"), bool) else None,
        weights=weights,
    )
