"""What a mergekit recipe says, typed: the structure that validate, estimate, verify and the engines share.

Three kinds of recipe exist. `merge` is `mergekit-yaml`'s, `moe` is `mergekit-moe`'s, and `multi` is `mergekit-multi`'s: several
named merges in one file. The models mirror the text; `groups` gives what an engine works on: the inputs of every output slice,
with an unlisted base appended where mergekit appends it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, Final, Literal

from pydantic import Field

from mcp_server.formats.recipe.settings import as_flag
from mcp_server.schemas.base import Frozen

RecipeKind = Literal["merge", "moe", "multi"]
Settings = dict[str, Any]
WHOLE: Final = "default"


class ModelRef(Frozen):
    """`base`, `base@revision`, or `base+adapter`: a full model, with a LoRA adapter on it if one is named."""

    base: str
    revision: str | None = None
    adapter: str | None = None
    adapter_revision: str | None = None
    override_architecture: str | None = None

    def __str__(self) -> str:
        return "+".join(
            f"{path}@{revision}" if revision else path
            for path, revision in ((self.base, self.revision), (self.adapter, self.adapter_revision))
            if path is not None
        )

    def __hash__(self) -> int:
        return hash((self.base, self.revision, self.adapter, self.adapter_revision, self.override_architecture))

    @property
    def base_ref(self) -> str:
        """The full model without its adapter, as `inspect_source` takes it."""
        return f"{self.base}@{self.revision}" if self.revision else self.base

    @property
    def adapter_ref(self) -> str | None:
        return f"{self.adapter}@{self.adapter_revision}" if self.adapter and self.adapter_revision else self.adapter


class Source(Frozen):
    """One input, whole (`layer_range` null) or a half-open range of its layers."""

    model: ModelRef
    layer_range: tuple[int, int] | None = None
    parameters: Settings = Field(default_factory=dict)


class OutputSlice(Frozen):
    sources: tuple[Source, ...]
    base_model: ModelRef | None = None
    parameters: Settings = Field(default_factory=dict)


class Module(Frozen):
    """One part of a model that has several (a vision tower beside a language model)."""

    models: tuple[Source, ...] = ()
    slices: tuple[OutputSlice, ...] = ()
    parameters: Settings = Field(default_factory=dict)


class Expert(Frozen):
    source_model: ModelRef
    positive_prompts: tuple[str, ...] = ()
    negative_prompts: tuple[str, ...] = ()
    noise_scale: float | None = None
    residual_scale: float | None = None


class Group(Frozen):
    """The inputs of one output slice: what the method is called with for every tensor in it.

    `scopes` are the parameter tables that apply to all inputs, nearest first; an input's own table comes before them.
    """

    where: str = Field(description="path inside the recipe, such as slices[0]")
    module: str | None = None
    sources: tuple[Source, ...]
    base: ModelRef | None
    base_added: bool = Field(default=False, description="the base was not listed and mergekit appends it")
    scopes: tuple[Settings, ...] = ()

    @property
    def others(self) -> tuple[Source, ...]:
        """The inputs that are not the base."""
        return tuple(source for source in self.sources if source.model != self.base)

    def settings(self, name: str, source: Source | None = None) -> Iterator[Any]:
        """Every setting of parameter `name`, nearest first: the source's own, the slice's, the module's, the recipe's."""
        for table in ((source.parameters,) if source else ()) + self.scopes:
            if name in table:
                yield table[name]


KEEPS_TIES: Final = "adapter_keeps_ties"
"""A parameter of ours that mergekit ignores: a LoRA of a tied embedding or head changes both, as PEFT's merge_and_unload does."""


def keeps_ties(groups: Iterable[Group], ref: ModelRef) -> bool:
    """What the recipe says of this source's adapter; false when it says nothing, as PEFT runs the adapter."""
    for group in groups:
        for source in group.sources:
            if source.model == ref:
                return any(as_flag(setting) is True for setting in islice(group.settings(KEEPS_TIES, source), 1))
    return False


class Recipe(Frozen):
    kind: RecipeKind = "merge"
    name: str | None = Field(default=None, description="of a stage in a multi-stage recipe")
    method: str = Field(default="", description="empty for moe and multi")
    base: ModelRef | None = None
    models: tuple[Source, ...] = ()
    slices: tuple[OutputSlice, ...] = ()
    modules: dict[str, Module] = Field(default_factory=dict)
    parameters: Settings = Field(default_factory=dict)
    dtype: str | None = None
    out_dtype: str | None = None
    tokenizer_source: str | None = None
    tokenizer: dict[str, Any] | None = None
    chat_template: str | None = None
    experts: tuple[Expert, ...] = ()
    shared_experts: tuple[Expert, ...] = ()
    gate_mode: str = "hidden"
    experts_per_token: int = 2
    architecture: str | None = None
    stages: tuple[Recipe, ...] = ()
    text: str = Field(default="", description="the YAML as it was given", repr=False)

    @property
    def out_precision(self) -> str | None:
        """The dtype of the written tensors when the recipe fixes it; else mergekit keeps what the inputs promote to."""
        return self.out_dtype or self.dtype

    @property
    def in_parts(self) -> bool:
        """Whether `modules` cuts the model; mergekit's name for the one part of an ordinary model is `default`."""
        return bool(set(self.modules) - {WHOLE})

    @property
    def sliced(self) -> bool:
        """Whether ranges of layers are named."""
        return any(source.layer_range is not None for source in self._sources())

    @property
    def donor(self) -> ModelRef:
        """The model whose config and tokenizer the output inherits: the base, else the first that is listed."""
        return self.base or self.groups()[0].sources[0].model

    @property
    def tokenizer_from(self) -> str | None:
        """Whose tokenizer the output takes: a model, `base`, or `union`, which is what a block without a source means."""
        if self.tokenizer is None:
            return self.tokenizer_source
        return str(self.tokenizer.get("source") or "union")

    def references(self) -> tuple[ModelRef, ...]:
        """Every model that is named, once each, the base first, then in order of appearance."""
        found: dict[ModelRef, None] = dict.fromkeys([self.base] if self.base else [])
        for source in self._sources():
            found.setdefault(source.model)
        for slice_ in (*self.slices, *(s for m in self.modules.values() for s in m.slices)):
            if slice_.base_model:
                found.setdefault(slice_.base_model)
        for expert in (*self.experts, *self.shared_experts):
            found.setdefault(expert.source_model)
        for stage in self.stages:
            for ref in stage.references():
                found.setdefault(ref)
        return tuple(found)

    def groups(self) -> tuple[Group, ...]:
        """The input groups in output order. Empty for moe and multi recipes."""
        groups = list(self._module_groups(None, "", self.models, self.slices, ()))
        for name, module in self.modules.items():
            scope = (module.parameters,) if module.parameters else ()
            groups += self._module_groups(name, f"modules.{name}.", module.models, module.slices, scope)
        return tuple(groups)

    def _module_groups(
        self,
        name: str | None,
        path: str,
        models: tuple[Source, ...],
        slices: tuple[OutputSlice, ...],
        scope: tuple[Settings, ...],
    ) -> Iterator[Group]:
        top = (self.parameters,) if self.parameters else ()
        if models:
            added = self.base is not None and all(source.model != self.base for source in models)
            sources = (*models, Source(model=self.base)) if added and self.base else models
            yield Group(where=f"{path}models", module=name, sources=sources, base=self.base, base_added=added, scopes=scope + top)
        for number, slice_ in enumerate(slices):
            own = (slice_.parameters,) if slice_.parameters else ()
            yield Group(
                where=f"{path}slices[{number}]",
                module=name,
                sources=slice_.sources,
                base=slice_.base_model or self.base,
                scopes=own + scope + top,
            )

    def _sources(self) -> Iterator[Source]:
        yield from self.models
        for slice_ in self.slices:
            yield from slice_.sources
        for module in self.modules.values():
            yield from module.models
            for slice_ in module.slices:
                yield from slice_.sources
