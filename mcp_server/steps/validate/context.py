"""What the checks look at: one document, read once, and the sources it names, opened once each and only when asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from mcp_server.catalog import Strategy
from mcp_server.errors import MergingError, NotFound
from mcp_server.formats.adapter_folder import AdapterFolder, open_adapter_folder
from mcp_server.formats.checkpoint import Checkpoint, open_checkpoint
from mcp_server.formats.lora import Adapter
from mcp_server.formats.recipe import ModelRef, Problem, Recipe, Source
from mcp_server.schemas.base import OutputFormat
from mcp_server.steps.validate.methods import merge_methods


@dataclass
class Context:
    """One recipe under examination. `folder` is what relative paths in it are relative to."""

    document: dict[str, Any]
    recipe: Recipe
    problems: Sequence[Problem]
    folder: Path
    homes: frozenset[str] = frozenset()
    out: Path | None = None
    ram_gib: float | None = None
    output_format: OutputFormat | None = None
    stage_names: frozenset[str] = frozenset()
    stages: tuple[Recipe, ...] = ()
    plan: list[str] | MergingError | None = None
    """What the streaming engine says of it, once it has been asked."""
    adapted: dict[str, Adapter | MergingError] = field(default_factory=dict)
    """base+adapter → how a merge reads the adapter, or why it refuses."""
    _models: dict[str, Checkpoint | MergingError] = field(default_factory=dict)
    _adapters: dict[str, AdapterFolder | MergingError] = field(default_factory=dict)

    @property
    def method(self) -> Strategy | None:
        """The recipe's method, or None when it is missing, unknown, or the recipe is no merge."""
        return merge_methods().get(self.recipe.method) if self.recipe.kind == "merge" else None

    def known_method(self) -> Strategy:
        if self.method is None:
            raise Unknown("the method is not known")
        return self.method

    def sources(self) -> Iterator[tuple[str, Source]]:
        """Every listed input with its place in the recipe."""
        for n, source in enumerate(self.recipe.models):
            yield f"models[{n}]", source
        for s, slice_ in enumerate(self.recipe.slices):
            for n, source in enumerate(slice_.sources):
                yield f"slices[{s}].sources[{n}]", source
        for name, module in self.recipe.modules.items():
            for n, source in enumerate(module.models):
                yield f"modules.{name}.models[{n}]", source
            for s, slice_ in enumerate(module.slices):
                for n, source in enumerate(slice_.sources):
                    yield f"modules.{name}.slices[{s}].sources[{n}]", source

    def named(self) -> Iterator[tuple[str, ModelRef]]:
        """Every place that names a model, experts and bases included."""
        if self.recipe.base:
            yield "base_model", self.recipe.base
        for where, source in self.sources():
            yield f"{where}.model", source.model
        for n, slice_ in enumerate(self.recipe.slices):
            if slice_.base_model:
                yield f"slices[{n}].base_model", slice_.base_model
        for key, experts in (("experts", self.recipe.experts), ("shared_experts", self.recipe.shared_experts)):
            for n, expert in enumerate(experts):
                yield f"{key}[{n}].source_model", expert.source_model

    def full_models(self) -> Iterator[tuple[str, ModelRef]]:
        """Every full model once, at the first place that names it."""
        seen = set()
        for where, ref in self.named():
            if ref.base_ref not in seen and not self.is_stage(ref):
                seen.add(ref.base_ref)
                yield where, ref

    def where(self, ref: ModelRef) -> str:
        """The first place that names exactly this."""
        return self._places.get(ref, "")

    @cached_property
    def _places(self) -> dict[ModelRef, str]:
        return {ref: where for where, ref in reversed(list(self.named()))}

    def is_stage(self, ref: ModelRef) -> bool:
        """Whether the name is the output of another stage, which does not exist yet."""
        return ref.base in self.stage_names

    def probe(self, ref: ModelRef) -> Checkpoint | MergingError:
        """The full model behind a ref (without its adapter), or why it cannot be opened."""
        if ref.base_ref not in self._models:
            try:
                self._models[ref.base_ref] = open_checkpoint(ref.base_ref, self.folder)
            except MergingError as error:
                self._models[ref.base_ref] = error
        return self._models[ref.base_ref]

    def probe_adapter(self, name: str) -> AdapterFolder | MergingError:
        if name not in self._adapters:
            try:
                self._adapters[name] = open_adapter_folder(name, self.folder)
            except MergingError as error:
                self._adapters[name] = error
        return self._adapters[name]

    def model(self, ref: ModelRef) -> Checkpoint | None:
        """The opened model, or None when it cannot be opened (another check says why)."""
        found = self.probe(ref)
        return found if isinstance(found, Checkpoint) else None

    def opened(self) -> dict[ModelRef, Checkpoint]:
        """Every model of the recipe that could be opened."""
        found = {ref: self.model(ref) for ref in self.recipe.references() if not self.is_stage(ref)}
        return {ref: model for ref, model in found.items() if model is not None}

    def all_here(self) -> bool:
        """Whether every source could be looked at; only then is the checkpoint level complete."""
        return all(not absent(self.probe(ref)) for ref in self.recipe.references() if not self.is_stage(ref))


def absent(probed: object) -> bool:
    """True for a hub id that is not in the local cache: unknown, rather than wrong."""
    return isinstance(probed, NotFound) and bool(probed.details.get("hub_id"))


class Unknown(Exception):
    """Raised by a check that lacks a fact; the rule is then reported as skipped."""
