"""A merged folder with everything it can be checked against: its recipe, its record, its base and its sources."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from mcp_server.errors import MergingError
from mcp_server.formats.checkpoint import open_checkpoint
from mcp_server.formats.lineage import short_names
from mcp_server.formats.provenance import Provenance, read_provenance, read_recipe_text
from mcp_server.formats.recipe import ModelRef, Recipe, keeps_ties, parse_ref, read_recipe
from mcp_server.formats.refs import resolve_ref
from mcp_server.formats.safetensors import read_header
from mcp_server.formats.tensors import StoredTensor, read_json, stored_tensors
from mcp_server.recompute.adapters import Adapter, read_adapter
from mcp_server.recompute.reading import same_values
from mcp_server.recompute.sources import Source, is_embedding, is_head, open_source, unwrapped


@dataclass
class Merge:
    """The output and what it came from. `missing` says why a source could not be opened.

    `by_ref` holds every model that the recipe names, the base too; `sources` those that are not the base, by name. `assumed`: no
    recipe was found, and this is what one adapter on its base is taken to be. `ours`: this product's engine wrote it.
    """

    folder: Path
    is_adapter: bool
    tensors: dict[str, StoredTensor]
    files: list[Path]
    config: dict[str, Any]
    recipe: Recipe | None
    provenance: Provenance | None
    base: Source | None = None
    by_ref: dict[ModelRef, Source] = field(default_factory=dict)
    sources: dict[str, Source] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    adapter: Adapter | None = None
    assumed: bool = False

    @property
    def ours(self) -> bool:
        return self.provenance is not None and self.provenance.engine == "stream"


def open_merge(folder: Path, recipe_text: str | None, base: str | None = None, sources: Sequence[str] = ()) -> Merge:
    """Open headers and record. Raises one of our errors when the output itself cannot be read; a missing source is noted.

    `base` and `sources` (FOLDER, HUB/ID, BASE+ADAPTER, or an adapter of the base) stand for those that the recipe names, in its
    order; without a recipe they are what the folder is compared with.
    """
    is_adapter = (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file()
    if is_adapter:
        file = folder / "adapter_model.safetensors"
        header = read_header(file)
        tensors = stored_tensors(file, header)
        files, config = [file], read_json(folder / "adapter_config.json")
    else:
        opened = open_checkpoint(str(folder))
        tensors, files, config = unwrapped(opened.tensors), list(opened.headers), opened.config
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
    given_base = parse_ref(base) if base else None
    given = [_given(text, given_base) for text in sources]
    if merge.recipe is None and given_base and len(given) == 1 and given[0].adapter:
        merge.recipe, merge.assumed = read_recipe(_folded_once(given_base, given[0])), True
    _open_sources(merge, given_base, given)
    return merge


def _given(text: str, base: ModelRef | None) -> ModelRef:
    ref = parse_ref(text)
    if base is not None and ref.adapter is None and (Path(resolve_ref(ref.base, Path.cwd())) / "adapter_config.json").is_file():
        return ModelRef(base=base.base, revision=base.revision, adapter=ref.base)
    return ref


def _folded_once(base: ModelRef, adapter: ModelRef) -> str:
    models = [{"model": str(adapter), "parameters": {"weight": 1.0}}]
    return yaml.safe_dump({"merge_method": "task_arithmetic", "base_model": str(base), "models": models})


def _recipe(folder: Path, text: str | None, provenance: Provenance | None) -> Recipe | None:
    """The recipe that was given, else the record's, else the one in the folder."""
    if text is None and provenance is not None:
        text = provenance.recipe
    if text is None:
        text = read_recipe_text(folder)
    return read_recipe(text, f"the recipe of {folder.name}") if text is not None else None


def _open_sources(merge: Merge, given_base: ModelRef | None, given: list[ModelRef]) -> None:
    recipe = merge.recipe if merge.recipe is not None and merge.recipe.kind == "merge" else None
    named = list(recipe.references()) if recipe else [*([given_base] if given_base else []), *given]
    base = recipe.base if recipe else given_base
    if base is None and given_base is not None and len(given) in (0, len(named)):
        base = given_base  # the recipe's method needs none: it is what the output is compared with, and stands for no source
    base = base or next((ref for ref in named if ref.adapter is None), None)
    if base is None:
        with_adapter = next((ref for ref in named if ref.adapter), None)
        base = ModelRef(base=with_adapter.base, revision=with_adapter.revision) if with_adapter else None
    others = [ref for ref in named if ref != base]
    stands = dict(zip(others, given, strict=False)) if len(others) == len(given) else {}
    if base is not None and given_base is not None:
        stands[base] = given_base
    names = {record.ref: record.name for record in merge.provenance.sources} if merge.provenance else {}
    if base is not None:
        label = names.get(str(base)) or Path(base.adapter or base.base).name
        try:
            merge.base = merge.by_ref[base] = _open(label, stands.get(base, base))
        except MergingError as error:
            merge.missing["the base"] = error.message
    for ref, short in zip(others, short_names([str(ref) for ref in others]), strict=True):
        name = names.get(str(ref)) or short
        try:
            merge.sources[name] = merge.by_ref[ref] = _open(name, stands.get(ref, ref))
        except MergingError as error:
            merge.missing[name] = error.message
    for ref, source in merge.by_ref.items() if recipe else ():
        if recipe and (keeps_ties(recipe.groups(), ref) or (not merge.ours and _stores_ties(merge, source))):
            source.keep_ties()
    if merge.is_adapter and merge.base is not None:
        merge.adapter = read_adapter(merge.folder, merge.base.tensors, str(merge.base.config.get("model_type")))


def _stores_ties(merge: Merge, source: Source) -> bool:
    """Whether the output has one embedding and head where the source has: then other tools changed both by every update."""
    heads = [tensor for name, tensor in merge.tensors.items() if is_head(name)]
    words = next((tensor for name, tensor in merge.tensors.items() if is_embedding(name)), None)
    if any(is_head(name) for name in source.tensors) or words is None:
        return False
    return all(head.shape == words.shape and same_values(head, words, full=False) for head in heads)


def _open(label: str, ref: ModelRef) -> Source:
    resolved = resolve_ref(ref.base, Path.cwd())
    model = f"{resolved}@{ref.revision}" if ref.revision else resolved
    adapter = Path(resolve_ref(ref.adapter, Path.cwd())) if ref.adapter else None
    if adapter is not None and not (adapter / "adapter_config.json").is_file() and (adapter / "config.json").is_file():
        return open_source(label, str(adapter))
    return open_source(label, model, adapter)
