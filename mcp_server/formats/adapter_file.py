"""The tensors of an adapter by the module that they belong to. Headers only."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final

from mcp_server.errors import Unsupported
from mcp_server.formats import adapter_names
from mcp_server.formats.checkpoint import require_float
from mcp_server.formats.tensors import StoredTensor

_PARTS: Final = r"lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector|hada_\w+|lokr_\w+|ia3_l|vera_lambda_[bd]"
KEY: Final = re.compile(rf"(?P<module>.+?)\.(?P<part>{_PARTS})(?:\.(?P<adapter>(?!weight$|bias$)[^.]+))?(?:\.weight)?$")
_TOKENS: Final = re.compile(r"(?P<module>.+?)(?:\.token_adapter)?\.trainable_tokens_delta(?:\.[^.]+)?$")
_SHARED: Final = re.compile(r"(?:.*\.)?vera_(?P<part>[AB])(?:\.[^.]+)?$")
_SAVED: Final = re.compile(r"\.modules_to_save(\.[^.]+)?(?=\.[^.]+$)")
_OTHER_LAYOUT: Final = re.compile(r"(?P<sd>\.lora_(down|up)\.)|\.lora_[ab]$")


@dataclass(slots=True)
class Module:
    """The tensors of one adapted module, as stored, and the weight that they change."""

    stem: str
    depth: int = 0
    parts: dict[str, StoredTensor] = field(default_factory=dict)
    kind: str = "module"  # module, tokens, or saved
    of_base: bool = False
    """Saved, but a copy of the base's own weight under an update, which PEFT saves of embeddings."""

    def shape_fits(self, shape: tuple[int, ...]) -> bool:
        """Whether the adapter's tensors can belong to a weight of this shape."""
        if self.kind == "saved":
            stored = self.parts["saved"].shape
            return stored == shape or (len(shape) == 2 and len(stored) == 2 and stored[1] == shape[1])
        if self.kind == "tokens":
            return len(shape) == 2 and shape[1] == self.parts["tokens"].shape[-1]
        a, b = self.parts.get("lora_A"), self.parts.get("lora_B")
        if a is None or b is None or len(a.shape) < 2 or len(b.shape) < 2 or 0 in (*a.shape, *b.shape):
            return True
        if len(a.shape) > 2:
            return shape == (b.shape[0], *a.shape[1:])
        sides = {(b.shape[0], a.shape[1]), (a.shape[1], b.shape[0])}
        return tuple(shape[-2:]) in sides and (len(shape) == 2 or (len(shape) == 3 and a.shape[0] % shape[0] == 0))


def modules_of(ref: str, tensors: dict[str, StoredTensor]) -> tuple[list[Module], dict[str, StoredTensor]]:
    """The adapter's tensors by the module that they belong to; and those that all modules share (VeRA's A and B)."""
    found: dict[tuple[str, int, str], Module] = {}
    shared: dict[str, StoredTensor] = {}
    adapters: dict[str, None] = {}
    for key, stored in tensors.items():
        if other := _OTHER_LAYOUT.search(key):
            raise Unsupported(
                f"{ref} is stored in the layout of {'sd-scripts' if other['sd'] else 'mlx-lm'} ({key})",
                "merge it with that tool, or convert it to PEFT's layout: lora_A and lora_B under the base's names",
            )
        if ".original_module." in key:  # the base's own, which a replacement stands in for
            continue
        require_float(key, stored)
        plain = bare(key)
        if match := KEY.match(plain):
            adapters[match["adapter"] or ""] = None
            if len(adapters) > 1:
                names = ", ".join(repr(name) for name in adapters)
                raise Unsupported(
                    f"{ref} holds several adapters in one file ({names})",
                    "save each by itself: save_pretrained(..., selected_adapters=[NAME])",
                )
            depth = match["module"].count(".base_layer")
            stem = match["module"].replace(".base_layer", "")
            found.setdefault((stem, depth, "module"), Module(stem, depth)).parts[match["part"]] = stored
        elif match := _SHARED.match(plain):
            shared[match["part"]] = stored
        elif match := _TOKENS.match(plain):
            found[match["module"], 0, "tokens"] = Module(match["module"], 0, {"tokens": stored}, "tokens")
        else:
            name = saved_name(plain)
            found[name, 0, "saved"] = Module(name, 0, {"saved": stored}, "saved", of_base=".base_layer." in plain)
    return list(found.values()), shared


def bare(key: str) -> str:
    """A stored key without PEFT's prefix and without the names that wrappers leave."""
    name = adapter_names.unwrap(key, also_module=key.startswith("module."))
    name = name.removeprefix("base_model.model.").removeprefix("base_model.")
    return name.removeprefix("module.")


def saved_name(name: str) -> str:
    """The base's name of a tensor that is stored whole."""
    return _SAVED.sub("", name).replace(".base_layer.", ".").removesuffix(".base_layer")
