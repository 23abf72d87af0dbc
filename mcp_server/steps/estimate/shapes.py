"""The tensors of a model: from its headers when it is here, from the table of well-known shapes when only its name is known."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

from pydantic import Field

from mcp_server.errors import NotAllowed, NotFound
from mcp_server.formats.checkpoint import Checkpoint, open_checkpoint
from mcp_server.formats.hub.copies import is_copy
from mcp_server.formats.quantised import Packing
from mcp_server.schemas.base import Frozen
from mcp_server.system import paths
from mcp_server.system.yaml_io import load_yaml

_SUFFIX: Final = re.compile(r"(instruct|chat|base|hf|it|sft|dpo)+$")


class KnownShape(Frozen):
    """One row of rules/shapes.yaml."""

    names: list[str] = Field(min_length=1)
    architecture: str
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    tied: bool
    source: str


@dataclass(frozen=True, slots=True)
class TensorSize:
    name: str
    shape: tuple[int, ...]
    nbytes: int
    """Of its numbers: a packed tensor counts as unpacked."""

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def row(self) -> int:
        """Elements of the last dimension of a matrix; 1 for a vector, which can be cut anywhere."""
        return self.shape[-1] if len(self.shape) > 1 else 1


@dataclass(frozen=True, slots=True)
class ModelShape:
    """A model's tensors. `origin` says how they are known: 'headers', or the row of the table."""

    tensors: tuple[TensorSize, ...]
    origin: str
    folder: Path | None = None
    packings: tuple[Packing, ...] = ()

    @property
    def held(self) -> int:
        """Bytes that the largest of its packed weights keeps in memory while it is read."""
        return max((packing.held_bytes for packing in self.packings), default=0)

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors)


def model_shape(ref: str, folder: Path | None = None) -> ModelShape:
    """The tensors of a full model. Raises `NotFound` when it is neither here nor in the table, or `NotAModel`."""
    try:
        return from_checkpoint(open_checkpoint(ref, folder))
    except (NotFound, NotAllowed) as missing:
        if isinstance(missing, NotAllowed) and not missing.details.get("hub_id"):
            raise
        if known := known_shape(ref):
            return ModelShape(tuple(_tensors(known)), f"the table of well-known shapes ({known.source})")
        raise NotFound(
            f"the size of {ref} is not known: {missing.message}",
            f"{missing.next_step}; or add its shape to rules/shapes.yaml",
            **missing.details,
        ) from missing


def from_checkpoint(model: Checkpoint) -> ModelShape:
    sizes = tuple(TensorSize(name, tensor.shape, tensor.number_bytes) for name, tensor in model.tensors.items())
    origin = "headers on the hub" if is_copy(model.folder) else "headers"
    return ModelShape(sizes, origin, model.folder, model.packings)


def known_shape(name: str) -> KnownShape | None:
    """The table's row for a hub id or bare model name; fine-tunes are matched by the name they carry. None when not known."""
    wanted = _plain(name)
    hits = [(len(key), key) for key in _by_name() if wanted == key or key in wanted]
    return _by_name()[max(hits)[1]] if hits else None


@cache
def _by_name() -> dict[str, KnownShape]:
    rows = load_yaml((paths.RULES / "shapes.yaml").read_text(encoding="utf-8"), "rules/shapes.yaml")["shapes"]
    shapes = [KnownShape.model_validate(row) for row in rows]
    return {_plain(name): shape for shape in shapes for name in shape.names}


def _plain(name: str) -> str:
    return _SUFFIX.sub("", re.sub(r"[^a-z0-9]", "", name.partition("@")[0].rpartition("/")[2].lower()))


def _tensors(shape: KnownShape) -> Iterator[TensorSize]:
    def tensor(name: str, *dims: int) -> TensorSize:
        return TensorSize(name, dims, 2 * math.prod(dims))

    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    yield tensor("model.embed_tokens.weight", shape.vocabulary, shape.hidden)
    for n in range(shape.layers):
        layer = f"model.layers.{n}."
        yield tensor(layer + "self_attn.q_proj.weight", queries, shape.hidden)
        yield tensor(layer + "self_attn.k_proj.weight", keys, shape.hidden)
        yield tensor(layer + "self_attn.v_proj.weight", keys, shape.hidden)
        yield tensor(layer + "self_attn.o_proj.weight", shape.hidden, queries)
        yield tensor(layer + "mlp.gate_proj.weight", shape.intermediate, shape.hidden)
        yield tensor(layer + "mlp.up_proj.weight", shape.intermediate, shape.hidden)
        yield tensor(layer + "mlp.down_proj.weight", shape.hidden, shape.intermediate)
        yield tensor(layer + "input_layernorm.weight", shape.hidden)
        yield tensor(layer + "post_attention_layernorm.weight", shape.hidden)
    yield tensor("model.norm.weight", shape.hidden)
    if not shape.tied:
        yield tensor("lm_head.weight", shape.vocabulary, shape.hidden)
