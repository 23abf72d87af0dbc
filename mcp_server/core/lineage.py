"""Who goes into a merge: one record per base, model and adapter that a recipe names, with its identity and licence."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from mcp_server.core.checkpoint.licence import read_licence
from mcp_server.core.provenance import SourceRecord, identify
from mcp_server.core.recipe import Recipe

Role = Literal["base", "model", "adapter"]


def source_records(recipe: Recipe, hash: Literal["headers", "full"] = "headers") -> list[SourceRecord]:
    """Records in the recipe's order, the base of an adapter before it; stages of the same recipe are no sources.

    Names are folder names, made unique by the parent folder's where two are alike.
    """
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
    return _unique(list(found.values()))


def _record(
    ref: str, role: Role, hash: Literal["headers", "full"], whole: str | None = None, base: str | None = None
) -> SourceRecord:
    folder = Path(ref)
    here = folder.is_dir()
    return SourceRecord(
        name=folder.name,
        ref=whole or ref,
        role=role,
        identity=identify(folder, hash) if here else None,
        licence=read_licence(folder) if here else None,
        base=base,
        revision=_revision(folder),
        modified={path.name: path.stat().st_mtime_ns for path in sorted(folder.glob("*.safetensors"))} if here else {},
    )


def _revision(folder: Path) -> str | None:
    """The commit of a snapshot in the hub cache: …/models--ORG--NAME/snapshots/COMMIT."""
    in_cache = folder.parent.name == "snapshots" and folder.parent.parent.name.startswith("models--")
    return folder.name if in_cache else None


def _unique(records: list[SourceRecord]) -> list[SourceRecord]:
    names = [record.name for record in records]
    unique: list[SourceRecord] = []
    for number, record in enumerate(records):
        name = record.name
        if names.count(name) > 1:
            name = f"{Path(record.ref.rpartition('+')[2]).parent.name}/{name}"
        if name in (other.name for other in unique):
            name = f"{name} ({number + 1})"
        unique.append(record.model_copy(update={"name": name}))
    return unique
