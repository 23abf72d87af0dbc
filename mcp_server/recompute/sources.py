"""The models of a merge by what they hold: which stored tensor stands for a name that a model spells otherwise, or ties."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from mcp_server.formats.checkpoint import open_checkpoint
from mcp_server.formats.tensors import StoredTensor
from mcp_server.recompute.adapters import TIED_HEAD, Adapter, read_adapter
from mcp_server.recompute.reading import is_float
from mcp_server.recompute.spelling import nearest, plain
from mcp_server.recompute.values import Value

_EMBEDDINGS = (
    "embed_tokens", "embed_in", "wte", "word_embeddings", "tok_embeddings", "tokens_embed", "shared", "embeddings", "embedding",
    "word_embedding", "embed",
)  # fmt: skip
_HEADS = ("lm_head", "embed_out", "output_projection", "decoder", "vocab_projector", "output_embeddings", "proj_out", "output")

Held = TypeVar("Held")


@dataclass(frozen=True)
class Source:
    """A base or a source, opened. `label` is how people call it."""

    label: str
    folder: Path
    config: dict[str, Any]
    tensors: dict[str, StoredTensor]
    adapter: Adapter | None = None
    found: dict[str, Value | None] = field(default_factory=dict, compare=False, repr=False)

    def value(self, name: str, shape: tuple[int, ...]) -> Value | None:
        """This model's version of a tensor of the output: under its own name, its tied twin's, or the one that spells alike."""
        if name not in self.found:
            self.found[name] = self._value(name, shape)
        return self.found[name]

    def any_rows(self, name: str) -> Value | None:
        """An embedding or head of any number of rows, or its tied twin."""
        if name in self.tensors:
            return Value(self.tensors[name], name, self.adapter)
        if self.embedding is None:
            return None
        return Value(self.tensors[self.embedding], self._head(name) if is_head(name) else self._words(name), self.adapter)

    def _value(self, name: str, shape: tuple[int, ...]) -> Value | None:
        if name in self.tensors:
            return Value(self.tensors[name], name, self.adapter)
        if (is_head(name) or is_embedding(name)) and self.embedding is not None:
            twin = self.tensors[self.embedding]
            own = self._head(name) if is_head(name) else self._words(name)
            return Value(twin, own, self.adapter) if twin.shape == shape else None
        if name.endswith("bias"):
            stem = name.removesuffix(".bias").removesuffix(".decoder")
            for alias in (f"{stem}.bias", f"{stem}.decoder.bias"):
                if alias in self.tensors:
                    own = name if self.adapter is not None and name in self.adapter.replaced else alias
                    return Value(self.tensors[alias], own, self.adapter)
        if (part := self._of_stack(name)) is not None:
            return Value(part, name, self.adapter) if part.shape == shape else None
        other = nearest(name, self.tensors)
        return Value(self.tensors[other], other, self.adapter) if other and self.tensors[other].shape == shape else None

    def _head(self, name: str) -> str:
        """As the adapter knows a head that this model does not store."""
        known = self.adapter.touched if self.adapter is not None else set()
        return TIED_HEAD if name not in known and TIED_HEAD in known else name

    def _words(self, name: str) -> str:
        """As the adapter knows an embedding that this model does not store: by the stored one, but for copies of a shared one.

        PEFT wraps the module of one name. The copies of others stay, unless the recipe changes all that are one.
        """
        assert self.embedding is not None
        alike = name.split(".")[-2] == self.embedding.split(".")[-2]
        together = self.adapter is None or self.embedding in self.adapter.one_with
        return self.embedding if alike or together else name

    def _of_stack(self, name: str) -> StoredTensor | None:
        """One expert's matrix where this model stores all of them in one tensor: (experts, rows, columns), gate before up."""
        found = re.fullmatch(r"(.+\.experts)\.(\d+)\.(gate|up|down)_proj\.weight", name)
        stack = self.tensors.get(f"{found[1]}.{'down' if found[3] == 'down' else 'gate_up'}_proj") if found else None
        if found is None or stack is None or len(stack.shape) != 3 or stack.packed is not None:
            return None
        if self.adapter is not None and any(other.startswith(f"{found[1]}.") for other in self.adapter.touched):
            return None
        experts, rows, columns = stack.shape
        height = rows if found[3] == "down" else rows // 2
        first = int(found[2]) * rows + (height if found[3] == "up" else 0)
        start = stack.offset + first * columns * (stack.nbytes // stack.count)
        inside = int(found[2]) < experts
        return StoredTensor(stack.file, start, stack.dtype, (height, columns), height * columns) if inside else None

    def keep_ties(self) -> None:
        """Let updates of a tied head and its embedding change both, as a recipe may ask."""
        words, adapter = self.embedding, self.adapter
        if adapter is None or words is None:
            return
        heads = [name for name in adapter.parts if is_head(name)]
        adapter.one_with |= {words: heads} | {name: [words] for name in self.tensors if is_head(name)}

    @cached_property
    def embedding(self) -> str | None:
        """The input embedding's name; of several the shared one."""
        names = [name for name in self.tensors if is_embedding(name)]
        return next((name for name in names if "shared" in name), names[0] if names else None)


def is_embedding(name: str) -> bool:
    words = name.split(".")
    return words[-1] == "weight" and len(words) > 1 and words[-2] in _EMBEDDINGS and not {"vision_model", "visual"} & set(words)


def is_head(name: str) -> bool:
    words = name.split(".")
    return words[-1] == "weight" and len(words) > 1 and words[-2] in _HEADS and not any(word.isdigit() for word in words)


def open_source(label: str, model: str, adapter: Path | None = None) -> Source:
    """Raises one of our errors when the model cannot be opened."""
    opened = open_checkpoint(model)
    tensors = unwrapped(opened.tensors)
    source = Source(label, opened.folder, opened.config, tensors)
    if adapter is None:
        return source
    known = dict(tensors)
    if source.embedding is not None and not any(is_head(name) and is_float(t.dtype) for name, t in tensors.items()):
        known[TIED_HEAD] = tensors[source.embedding]  # a tied head, which an adapter may change on its own
    return Source(
        label, opened.folder, opened.config, tensors, read_adapter(adapter, known, str(opened.config.get("model_type")))
    )


def unwrapped(tensors: dict[str, Held]) -> dict[str, Held]:
    """Tensors, or what is known of them, by the model's own names, without what compilers and training wrappers put into them."""
    front = bool(tensors) and all(name.startswith("module.") for name in tensors)
    plain_names = {plain(name.removeprefix("module.") if front else name): tensor for name, tensor in tensors.items()}
    return plain_names if len(plain_names) == len(tensors) else tensors
