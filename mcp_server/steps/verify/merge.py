"""A merged folder with everything it can be checked against: its recipe, its record, its base and its sources."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mcp_server.errors import MergingError
from mcp_server.formats.checkpoint import Checkpoint, StoredTensor, open_checkpoint
from mcp_server.formats.lora import Adapter, open_adapter
from mcp_server.formats.provenance import Provenance, read_provenance, read_recipe_text
from mcp_server.formats.recipe import ModelRef, Recipe, read_recipe
from mcp_server.formats.refs import resolve_ref
from mcp_server.formats.safetensors import read_header
from mcp_server.formats.tensors import read_json


@dataclass(frozen=True)
class Opened:
    """A source that could be opened: a full model, with an adapter on it if one is named."""

    model: Checkpoint
    adapter: Adapter | None = None


@dataclass
class Merge:
    """The output and what it came from. `missing` says why a source could not be opened."""

    folder: Path
    is_adapter: bool
    tensors: dict[str, StoredTensor]
    files: list[Path]
    config: dict[str, Any]
    recipe: Recipe | None
    provenance: Provenance | None
    base: Checkpoint | None = None
    sources: dict[str, Opened] = field(default_factory=dict)
    refs: dict[str, ModelRef] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    adapter: Adapter | None = None


def open_merge(folder: Path, recipe_text: str | None) -> Merge:
    """Open headers and record. Raises one of our errors when the output itself cannot be read; a missing source is noted."""
    is_adapter = (folder / "adapter_config.json").is_file()
    if is_adapter:
        file = folder / "adapter_model.safetensors"
        header = read_header(file)
        tensors = {
            name: StoredTensor(file, header.data_start + info.begin, info.dtype, info.shape, info.elements)
            for name, info in header.tensors.items()
        }
        files, config = [file], read_json(folder / "adapter_config.json")
    else:
        opened = open_checkpoint(str(folder))
        tensors, files, config = opened.tensors, list(opened.headers), opened.config
    provenance = read_provenance(folder)
    merge = Merge(
        folder=folder,
        is_adapter=is_adapter,
        tensors=tensors,
        files=files,
        config=config,
        recipe=_recipe(folder, recipe_text, provenance),
        provenance=provenance,
    )
    _open_sources(merge)
    return merge


def _recipe(folder: Path, text: str | None, provenance: Provenance | None) -> Recipe | None:
    """The recipe that was given, else the record's, else the one in the folder."""
    if text is None and provenance is not None:
        text = provenance.recipe
    if text is None:
        text = read_recipe_text(folder)
    return read_recipe(text, f"the recipe of {folder.name}") if text is not None else None


def _open_sources(merge: Merge) -> None:
    if merge.recipe is None or merge.recipe.kind != "merge":
        return
    names = {record.ref: record.name for record in merge.provenance.sources} if merge.provenance else {}
    base = merge.recipe.base or next((r for r in merge.recipe.references() if r.adapter is None), None)
    if base is None:
        with_adapter = next((r for r in merge.recipe.references() if r.adapter), None)
        base = ModelRef(base=with_adapter.base, revision=with_adapter.revision) if with_adapter else None
    if base is not None and base.adapter is None:
        try:
            merge.base = _model(base)
        except MergingError as error:
            merge.missing["the base"] = error.message
    for ref in merge.recipe.references():
        if ref == base:
            continue
        name = names.get(str(ref)) or Path(ref.adapter or ref.base).name
        while name in merge.refs:
            name += "'"
        merge.refs[name] = ref
        try:
            model = _model(ref)
            adapter = open_adapter(resolve_ref(ref.adapter, Path.cwd()), model.tensors) if ref.adapter else None
            merge.sources[name] = Opened(model, adapter)
        except MergingError as error:
            merge.missing[name] = error.message
    if merge.is_adapter and merge.base is not None:
        merge.adapter = open_adapter(str(merge.folder), merge.base.tensors)


def _model(ref: ModelRef) -> Checkpoint:
    resolved = resolve_ref(ref.base, Path.cwd())
    return open_checkpoint(f"{resolved}@{ref.revision}" if ref.revision else resolved)
