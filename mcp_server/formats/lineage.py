"""Who goes into a merge: one record per base, model and adapter that a recipe names, with its identity and licence."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from mcp_server.formats.folder import folder_of
from mcp_server.formats.licence import read_licence
from mcp_server.formats.provenance import SourceRecord, identify, read_provenance, read_recipe_text, weight_files
from mcp_server.formats.recipe import MISSING, ModelRef, Recipe, as_number, read_recipe, resolve
from mcp_server.formats.refs import hub_id_of, is_hub_id
from mcp_server.schemas.base import Frozen

Role = Literal["base", "model", "adapter"]


def source_records(recipe: Recipe, hash: Literal["headers", "full"] = "headers") -> list[SourceRecord]:
    """Records in the recipe's order, the base of an adapter before it; stages of the same recipe are no sources."""
    stages = {stage.name for stage in recipe.stages}
    found: dict[str, SourceRecord] = {}
    for ref in recipe.references():
        if ref.base in stages:
            continue
        is_base = ref.adapter is not None or ref == recipe.base
        if ref.base_ref not in found:
            found[ref.base_ref] = _record(ref.base_ref, "base" if is_base else "model", hash)
        if ref.adapter_ref is not None:
            found[str(ref)] = _record(ref.adapter_ref, "adapter", hash, whole=str(ref), base=ref.base_ref)
    records = list(found.values())
    names = short_names([record.ref for record in records])
    return [record.model_copy(update={"name": name}) for record, name in zip(records, names, strict=True)]


def _record(
    ref: str, role: Role, hash: Literal["headers", "full"], whole: str | None = None, base: str | None = None
) -> SourceRecord:
    path = Path(ref)
    folder = folder_of(path)
    here = folder.is_dir()
    return SourceRecord(
        name=path.name,
        ref=whole or ref,
        role=role,
        identity=identify(path, hash) if here else None,
        licence=read_licence(folder) if here else None,
        base=base,
        revision=_revision(folder),
        modified={path.name: path.stat().st_mtime_ns for path in weight_files(path)} if here else {},
    )


def _revision(folder: Path) -> str | None:
    """The commit of a snapshot in the hub cache: …/models--ORG--NAME/snapshots/COMMIT."""
    return folder.name if hub_id_of(folder) else None


def short_names(refs: Sequence[str]) -> list[str]:
    """What sources are called: an adapter by its own folder, a model by its own, a snapshot of the hub cache by its hub id.

    The parent folder's name (the owner's) comes before it where two are alike, and a number behind it where even those are.
    """
    called = [_called(Path(ref.rpartition("+")[2])) for ref in refs]
    alike = [name for _, name in called]
    unique: list[str] = []
    for number, (parent, last) in enumerate(called, 1):
        name = last if alike.count(last) == 1 else f"{parent}/{last}"
        unique.append(f"{name} ({number})" if name in unique else name)
    return unique


def _called(folder: Path) -> tuple[str, str]:
    """(parent, name) of a folder. A snapshot's own name would be a commit, which tells a reader nothing."""
    owner, _, name = (hub_id_of(folder) or "").rpartition("/")
    return (owner, name) if name else (folder.parent.name, folder.name)


def name_of_base(ref: ModelRef, configs: list[dict[str, Any]], beside: Path) -> tuple[str, str | None]:
    """(name, revision) under which an adapter in the folder `beside` names its base: a hub id where one is known.

    Known are the ref itself, a snapshot of the hub cache, and what the adapters' configs agree on. Else it is the base's path
    from `beside`, since an absolute path means nothing on another machine.
    """
    folder = Path(ref.base)
    if is_hub_id(ref.base) and not folder.exists():
        return ref.base, ref.revision
    if known := hub_id_of(folder):
        return known, folder.name
    said = {str(config.get("base_model_name_or_path")) for config in configs}
    if len(said) == 1 and is_hub_id(name := said.pop()) and "/" in name:
        return name, None
    return os.path.relpath(folder.resolve(), beside.resolve()), None


class Tried(Frozen):
    """What produced the merge: method, λ and the weight per source, as far as known."""

    method: str | None = None
    lambda_: float | None = None
    normalize: bool | None = None
    weights: dict[str, float] = Field(default_factory=dict)


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
    """`names` gives the short names of a record by ref; without it, and for what it lacks, `short_names` does."""
    references = recipe.references()
    base = recipe.base or next((ref for ref in references if ref.adapter is None), None)
    others = [ref for ref in references if ref != base]
    sources: dict[str, str] = {}
    short: dict[str, str] = {}
    for ref, name in zip(others, short_names([str(ref) for ref in others]), strict=True):
        short[str(ref)] = (names or {}).get(str(ref)) or (names or {}).get(ref.adapter or "") or name
        sources[short[str(ref)]] = str(ref)
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
