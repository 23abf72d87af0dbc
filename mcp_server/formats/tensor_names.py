"""Names of tensors and what they say: which layer a tensor is in, and whether it comes before or after the layers."""

from __future__ import annotations

import re
from typing import Any, Final

LAYER: Final = re.compile(r"^(?P<stack>(?:.*?\.)??(?:layers|layer|h|blocks|block))\.(?P<number>\d+)\.(?P<rest>.+)$")
_EMBEDDING: Final = re.compile(r"(?:^|\.)(?:embed_tokens|embed_in|embed_positions|wte|wpe|word_embeddings|tok_embeddings)")
_BUFFER: Final = re.compile(r"(?:rotary_emb\.inv_freq|\.attn\.masked_bias|^(?:transformer\.)?h\.\d+\.attn\.bias)$")
_LAYER_KEYS: Final = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")

HEADS: Final = ("lm_head.weight",)
EMBEDDINGS: Final = ("model.embed_tokens.weight", "transformer.wte.weight")


def split_layer(name: str) -> tuple[str, int, str] | None:
    """('model.layers', 3, 'mlp.up_proj.weight') for a tensor of a layer, None for one outside the layers."""
    found = LAYER.match(name)
    return (found["stack"], int(found["number"]), found["rest"]) if found else None


def is_before_layers(name: str) -> bool:
    return bool(_EMBEDDING.search(name))


def is_buffer(name: str) -> bool:
    """Tensors that old checkpoints store although the model computes them; mergekit leaves them out as well."""
    return bool(_BUFFER.search(name))


def layer_key(config: dict[str, Any]) -> str | None:
    return next((key for key in _LAYER_KEYS if isinstance(config.get(key), int)), None)


def vocabulary_tensor(name: str) -> bool:
    return bool(_EMBEDDING.search(name)) or name in HEADS
