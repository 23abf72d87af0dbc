"""A recipe as the engine sees it: mergekit's YAML, parsed strictly and brought to one form.

mergekit accepts `models` or `slices`; here both become a list of output slices, exactly as its planner does it: `models` is one
slice over every layer, and a base that is not listed among the models joins as one more source. Unknown keys are errors, because
mergekit ignores them and a misspelt `parameters` then changes the result without a word.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from mcp_server.core.errors import Malformed, Unsupported, did_you_mean

Settings = Mapping[str, Any]

_TOP = (
    "modules", "slices", "models", "merge_method", "base_model", "dtype", "tokenizer_source", "tokenizer", "chat_template",
    "out_dtype", "parameters",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class ModelRef:
    """`path`, `path@revision`, or either with `+adapter`. Two references are the same source when their texts are."""

    model: str
    adapter: str | None = None

    @classmethod
    def parse(cls, value: object) -> ModelRef:
        if isinstance(value, Mapping):
            model, adapter = value.get("model"), value.get("lora")
            parts = [_path(model)] + ([_path(adapter)] if adapter else [])
        else:
            parts = str(value).split("+")
        if len(parts) > 2 or not all(parts):
            raise Malformed(f"cannot read the model reference {value!r}", "write MODEL or MODEL+ADAPTER")
        return cls(parts[0], parts[1] if len(parts) == 2 else None)

    def __str__(self) -> str:
        return f"{self.model}+{self.adapter}" if self.adapter else self.model


def _path(value: object) -> str:
    if isinstance(value, Mapping):
        path, revision = value.get("path"), value.get("revision")
        return f"{path}@{revision}" if revision else str(path)
    return str(value or "")


@dataclass(frozen=True, slots=True)
class SliceSource:
    """One model's part in a slice. `layers` is None when the slice covers every layer the model has."""

    ref: ModelRef
    layers: tuple[int, int] | None
    parameters: Settings


@dataclass(frozen=True, slots=True)
class OutputSlice:
    sources: tuple[SliceSource, ...]
    base: ModelRef | None
    parameters: Settings


@dataclass(frozen=True, slots=True)
class Recipe:
    """A parsed recipe; `text` is what the user wrote, byte for byte."""

    text: str
    method: str
    slices: tuple[OutputSlice, ...]
    base: ModelRef | None
    dtype: str | None
    out_dtype: str | None
    parameters: Settings
    chat_template: str | None = None
    tokenizer_source: str | None = None
    tokenizer: Settings = field(default_factory=dict)
    has_modules: bool = False

    @property
    def refs(self) -> tuple[ModelRef, ...]:
        """Every model referred to, once each, in the order of the recipe."""
        found = [source.ref for part in self.slices for source in part.sources]
        found += [part.base for part in self.slices if part.base] + ([self.base] if self.base else [])
        return tuple(dict.fromkeys(found))

    @property
    def donor(self) -> ModelRef:
        """The model whose config and tokenizer the output inherits."""
        return self.base or self.slices[0].sources[0].ref


def parse_recipe(text: str) -> Recipe:
    """Parse recipe text. Raises `Malformed` for what is no recipe, with the key and the value found."""
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise Malformed(f"the recipe is not YAML: {error}", "check indentation and quotes at that place") from error
    if not isinstance(data, Mapping):
        raise Malformed(f"the recipe is a {type(data).__name__}, not a table", "start with merge_method: and models:")
    _known(data, _TOP, "the recipe")
    if "merge_method" not in data:
        raise Malformed("the recipe has no merge_method", "add for instance `merge_method: ties`")
    base = ModelRef.parse(data["base_model"]) if data.get("base_model") else None
    forms = [key for key in ("models", "slices", "modules") if data.get(key)]
    if len(forms) != 1:
        raise Malformed(f"the recipe has {forms or 'none'} of models, slices and modules", "give exactly one of them")
    if forms == ["models"]:
        slices: tuple[OutputSlice, ...] = (_from_models(data["models"], base),)
    else:
        slices = tuple(_slice(entry) for entry in _list(data.get("slices", []), "slices"))
    tokenizer = data.get("tokenizer") or {}
    return Recipe(
        text=text,
        method=str(data["merge_method"]),
        slices=slices,
        base=base,
        dtype=_dtype(data.get("dtype")),
        out_dtype=_dtype(data.get("out_dtype")),
        parameters=_settings(data.get("parameters"), "the recipe"),
        chat_template=data.get("chat_template"),
        tokenizer_source=str(data["tokenizer_source"]) if data.get("tokenizer_source") else None,
        tokenizer=tokenizer,
        has_modules=forms == ["modules"],
    )


def _from_models(entries: Any, base: ModelRef | None) -> OutputSlice:
    sources = []
    for entry in _list(entries, "models"):
        _known(entry, ("model", "parameters"), "an entry of models")
        ref = ModelRef.parse(entry.get("model"))
        sources.append(SliceSource(ref, None, _settings(entry.get("parameters"), str(ref))))
    if base and base not in [source.ref for source in sources]:
        sources.append(SliceSource(base, None, {}))
    return OutputSlice(tuple(sources), None, {})


def _slice(entry: Any) -> OutputSlice:
    _known(entry, ("sources", "base_model", "residual_weight", "parameters"), "a slice")
    if entry.get("residual_weight") is not None:
        raise Unsupported("residual_weight has no effect in mergekit 0.1.5", "remove it from the slice")
    sources = []
    for source in _list(entry.get("sources"), "sources"):
        _known(source, ("model", "layer_range", "parameters"), "a slice's source")
        ref, layers = ModelRef.parse(source.get("model")), source.get("layer_range")
        if not (isinstance(layers, list) and len(layers) == 2 and all(type(n) is int for n in layers)):
            raise Malformed(f"layer_range of {ref} is {layers!r}", "give [first, one past the last], for instance [0, 16]")
        if not 0 <= layers[0] < layers[1]:
            raise Malformed(f"layer_range {layers} of {ref} holds no layer", "the end is exclusive and above the start")
        sources.append(SliceSource(ref, (layers[0], layers[1]), _settings(source.get("parameters"), str(ref))))
    if len({b - a for a, b in (s.layers for s in sources if s.layers)}) != 1:
        raise Malformed("the sources of a slice have different numbers of layers", "give them ranges of one length")
    base = ModelRef.parse(entry["base_model"]) if entry.get("base_model") else None
    return OutputSlice(tuple(sources), base, _settings(entry.get("parameters"), "a slice"))


def _list(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list) or not value or not all(isinstance(entry, Mapping) for entry in value):
        raise Malformed(f"{where} is {str(value)[:80]!r}, not a list of tables", "write one `- model: …` entry per source")
    return value


def _known(entry: Mapping[str, Any], allowed: tuple[str, ...], where: str) -> None:
    for key in entry:
        if key not in allowed:
            hint = did_you_mean(str(key), allowed) or f" Known: {', '.join(allowed)}."
            raise Malformed(
                f"{where} has the unknown key {key!r}.{hint}", "mergekit would ignore it silently; correct or remove it"
            )


def _settings(value: Any, where: str) -> Settings:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise Malformed(f"parameters of {where} is {str(value)[:80]!r}, not a table", "write `parameters: {weight: 0.5}`")
    return value


def _dtype(value: Any) -> str | None:
    return None if value is None else str(value).removeprefix("torch.")
