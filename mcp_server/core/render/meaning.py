"""What a recipe is meant to say, and whether the rendered text says exactly that."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from mcp_server.core.errors import Malformed

_SHAPE = {"models", "slices", "experts"}


@dataclass(frozen=True)
class Input:
    """One model of the recipe. `model` is text (`base+adapter` for an adapter) or mergekit's table form for odd paths."""

    name: str
    model: Any
    parameters: dict[str, Any] = field(default_factory=dict)
    layer_range: list[int] | None = None
    prompts: list[str] | None = None


@dataclass(frozen=True)
class Meaning:
    """The recipe as data, before any text: what the template gets, and what the text is held against."""

    method: str
    runner: str
    inputs: list[Input]
    base: Any = None
    parameters: dict[str, Any] = field(default_factory=dict)
    dtype: str | None = None
    tokenizer: Any = None
    layers: int | None = None
    stages: list[Meaning] = field(default_factory=list)

    def document(self) -> dict[str, Any]:
        """The normal form that `normal` also makes of parsed YAML."""
        return _drop(
            {
                "merge_method": None if self.runner == "mergekit-moe" else self.method,
                "base_model": self.base,
                "inputs": [
                    _drop(
                        {
                            "model": one.model,
                            "parameters": one.parameters,
                            "layer_range": one.layer_range,
                            "prompts": one.prompts,
                        }
                    )
                    for one in self.inputs
                ],
                "parameters": self.parameters,
                "dtype": self.dtype,
                "tokenizer": {"source": self.tokenizer} if self.tokenizer else None,
            }
        )


def normal(document: Any) -> dict[str, Any]:
    """A parsed recipe in normal form: models, slices and experts become one list of inputs; top-level keys stay visible."""
    if not isinstance(document, dict):
        return {"not a table": document}
    inputs = list(document.get("models") or [])
    for piece in document.get("slices") or []:
        inputs += piece.get("sources") or []
    inputs += [
        {"model": expert.get("source_model"), "prompts": expert.get("positive_prompts")}
        for expert in document.get("experts") or []
    ]
    shared = document.get("parameters") or {}
    if "experts" in document:
        shared = {key: document[key] for key in ("gate_mode", "experts_per_token") if key in document}
    rest = {key: value for key, value in document.items() if key not in _SHAPE | {"parameters", *shared}}
    return _drop({**rest, "inputs": [_drop(dict(one)) for one in inputs], "parameters": shared})


def compare(documents: list[Any], meaning: Meaning, template: str) -> None:
    """Raise `Malformed` when the parsed text is not what was meant; the first differing place is named."""
    stages = meaning.stages or [meaning]
    if len(documents) != len(stages):
        raise _differs(template, f"{len(documents)} documents", f"{len(stages)}")
    for document, stage in zip(documents, stages, strict=True):
        found = normal(document)
        if stage is not stages[-1]:
            found.pop("name", None)  # what an intermediate model is called; the stage that uses it names it among its inputs
        meant = stage.document()
        for key in dict.fromkeys([*meant, *found]):
            if meant.get(key) != found.get(key):
                raise _differs(template, f"{key}: {found.get(key)!r}", f"{meant.get(key)!r}")


def _differs(template: str, found: str, meant: str) -> Malformed:
    return Malformed(
        f"templates/{template} rendered {found[:300]}, the plan means {meant[:300]}",
        "correct the template; `model-merging check` renders every one",
    )


def _drop(table: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in table.items() if value not in (None, {}, [])}
