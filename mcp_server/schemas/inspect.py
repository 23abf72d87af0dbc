"""What headers and configs say about the sources."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from mcp_server.schemas.base import Frozen

Kind = Literal["full", "lora", "quantised", "gguf", "pickle", "not_a_model"]


class AdapterInfo(Frozen):
    peft_type: str
    ranks: list[int] = Field(description="distinct ranks found in the weights, ascending")
    alpha: float | None
    scale: float | None = Field(description="alpha/r, or alpha/√r for rsLoRA; null when it differs by module")
    targets: list[str]
    base: str | None = Field(description="base_model_name_or_path of its config")
    rslora: bool = False
    dora: bool = False
    modules_to_save: list[str] = Field(default_factory=list)


class SourceInfo(Frozen):
    ref: str
    path: str | None = None
    revision: str | None = Field(default=None, description="the commit on the hub, where only headers were read, from there")
    kind: Kind
    detail: str = Field(default="", description="why it is not a plain model, and what to do")
    architecture: str | None = None
    architecture_hash: str | None = None
    model_type: str | None = None
    layers: int | None = None
    hidden: int | None = None
    intermediate: int | None = None
    heads: int | None = None
    kv_heads: int | None = None
    vocabulary: int | None = None
    dtype: str | None = None
    parameters: int | None = None
    bytes: int | None = None
    tensors: int | None = None
    largest_tensor: dict[str, Any] | None = Field(default=None, description="name, shape, elements")
    tied_embeddings: bool | None = None
    tokenizer_hash: str | None = None
    chat_template_hash: str | None = None
    licence: str | None = None
    adapter: AdapterInfo | None = None

    @property
    def is_model(self) -> bool:
        """Whether its tensors can be read as a full model's: plain, or packed in a format that is unpacked here."""
        return self.kind == "full" or (self.kind == "quantised" and self.architecture_hash is not None)

    @property
    def is_undecided(self) -> bool:
        """Whether it may be a model that can be read, which only its whole header tells: GGUF on a hub, beside a config.json."""
        return self.kind == "gguf" and self.architecture is not None


class Difference(Frozen):
    field: str
    values: dict[str, Any] = Field(description="source ref → value")
    meaning: Literal["fatal", "needs_tokenizer_block", "caution", "harmless"]
    why: str = ""


class Inspection(Frozen):
    sources: list[SourceInfo]
    compatible: bool | None = Field(description="null: something needed to tell is unknown")
    differences: list[Difference] = Field(default_factory=list)
    licences: list[str] = Field(default_factory=list, description="conflicts and the lineage to state")
