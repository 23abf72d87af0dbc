"""Names of tensors and what they say: which layer a tensor is in, what is a head, an embedding, a buffer, a next-token layer.

Every other module asks here. Layers are numbered stacks: `model.layers.3.mlp.up_proj.weight` is in layer 3 of `model.layers`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Final

LAYER: Final = re.compile(r"^(?P<stack>(?:.*?\.)??(?:layers|layer|h|blocks|block|resblocks))\.(?P<number>\d+)\.(?P<rest>.+)$")
_EMBEDDING: Final = re.compile(
    r"(?:^|\.)(?:embed_tokens|embed_in|embed_positions|wte|wpe|word_embeddings|tok_embeddings|tokens_embed|shared"
    r"|decoder_embed_tokens|encoder_embed_tokens)\."
)
_WORDS: Final = re.compile(
    r"(?:^|\.)(?:embed_tokens|embed_in|wte|word_embeddings|tok_embeddings|tokens_embed|shared"
    r"|embeddings|embedding|word_embedding|embed|decoder_embed_tokens|encoder_embed_tokens)\.weight$"
)
_HEAD: Final = re.compile(
    r"(?:^|\.)(?:lm_head(?:\.decoder)?|embed_out|output_projection|generator_lm_head|lm_loss"
    r"|(?:cls|predictions|generator_predictions|lm_head|head)(?:\.predictions)?\.decoder|vocab_projector|output_embeddings"
    r"|prediction_head\.decoder|proj_out|pred_layer\.proj|final_logits|text_predictions\.decoder)\.(?:weight|bias)$"
)
_BUFFER: Final = re.compile(
    r"(?:^|\.)(?:inv_freq|original_inv_freq|masked_bias|position_ids|token_type_ids|num_batches_tracked"
    r"|relative_position_index|relative_coords_table|(?:in|out)put_(?:min|max))$"
)
_MASK: Final = re.compile(r"(?:^|\.)(?:attn|attention)\.bias$")
_NEXT_TOKEN: Final = re.compile(r"(?:^|\.)(?:mtp|mtp_layers?|mtp_block|nextn|nextn_predict_layers|next_token_heads?)\.")
_OTHER_MODALITY: Final = re.compile(
    r"vision|visual|vit\.|image|img|audio|speech|sound|whisper|mtp|nextn|resampler|perceiver|projector|connector|qformer|tower"
    r"|sam_model|merger|codec|talker|token2wav|vq|depth|timm|patch|aligner|multi_modal|clip"
)
_LAYER_KEYS: Final = ("num_hidden_layers", "n_layer", "num_layers", "n_layers", "num_blocks", "num_decoder_layers")
WRAPPERS: Final = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "_forward_module.")
"""What torch.compile, FSDP, activation checkpointing and engines leave inside names; DataParallel's `module.` stands in front."""

HEADS: Final = ("lm_head.weight",)
EMBEDDINGS: Final = ("model.embed_tokens.weight", "transformer.wte.weight")


def split_layer(name: str) -> tuple[str, int, str] | None:
    """('model.layers', 3, 'mlp.up_proj.weight') for a tensor of a layer, None for one outside the layers."""
    found = LAYER.match(name)
    return (found["stack"], int(found["number"]), found["rest"]) if found else None


def stacks(names: Iterable[str]) -> dict[str, int]:
    """Every stack of layers and the number of its layers, in the order of their first tensors."""
    found: dict[str, int] = {}
    for name in names:
        if parts := split_layer(name):
            found[parts[0]] = max(found.get(parts[0], 0), parts[1] + 1)
    return found


def main_stack(found: Iterable[str]) -> str | None:
    """The stack that 'the layers' of a model means: the only one, or the only one that holds text. None when two could be meant.

    Towers for images and sound, and next-token layers, stand beside the language model; an encoder and a decoder are two.
    """
    every = list(found)
    if len(every) == 1:
        return every[0]
    text = [stack for stack in every if not _OTHER_MODALITY.search(stack)]
    return text[0] if len(text) == 1 else None


def is_before_layers(name: str) -> bool:
    return bool(_EMBEDDING.search(name))


def is_head(name: str) -> bool:
    """An output head over the vocabulary, which a model may tie to its embedding."""
    return bool(_HEAD.search(name)) and name.endswith(".weight")


def is_word_embedding(name: str) -> bool:
    """The input embedding (not positions or token types)."""
    return bool(_WORDS.search(name)) and not _OTHER_MODALITY.search(name)


def is_buffer(name: str, shape: tuple[int, ...]) -> bool:
    """Tensors that a model computes or counts rather than learns, which some checkpoints store and others leave out.

    `attn.bias` is GPT-2's causal mask when it has four dimensions; with one it is a trained bias.
    """
    return bool(_BUFFER.search(name)) or (len(shape) == 4 and bool(_MASK.search(name)))


def is_next_token(name: str) -> bool:
    """A tensor of a next-token head (multi-token prediction), which many fine-tunes leave out."""
    return bool(_NEXT_TOKEN.search(name))


def layer_key(config: dict[str, Any]) -> str | None:
    return next((key for key in _LAYER_KEYS if isinstance(config.get(key), int)), None)


def vocabulary_tensor(name: str) -> bool:
    return is_word_embedding(name) or is_head(name)


def without_wrappers(names: Iterable[str]) -> tuple[dict[str, str], str]:
    """Stored name → the model's own name, and what was taken away ('' when nothing was). Names that would collide stay.

    A leading `module.` is a wrapper's only when every name has it.
    """
    stored = list(names)
    plain, removed = {}, ""
    front = bool(stored) and all(name.startswith("module.") for name in stored)
    for name in stored:
        own = name.removeprefix("module.") if front else name
        for wrapper in WRAPPERS:
            if wrapper in own:
                own, removed = own.replace(wrapper, ""), wrapper
        plain[name] = own
    removed = "module." if front else removed
    if len(set(plain.values())) != len(plain):
        return {name: name for name in stored}, ""
    return plain, removed
