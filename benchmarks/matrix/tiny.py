"""Every class of transformers that can be made tiny: its default configuration with small numbers, and random weights."""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Iterator
from typing import Any

import torch
import transformers
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

MOST_PARAMETERS = 3_000_000
HEADS = (
    "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES",
    "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",
    "MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES",
    "MODEL_FOR_MASKED_LM_MAPPING_NAMES",
    "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",
    "MODEL_MAPPING_NAMES",
)
"""The tables of transformers that name classes, the one that people merge most first; each model type counts once."""

SMALL: dict[str, Any] = {
    "hidden_size": 32, "d_model": 32, "n_embd": 32, "dim": 32, "embed_dim": 32, "width": 32, "embedding_size": 32, "d_embed": 32,
    "intermediate_size": 48, "ffn_dim": 48, "d_ff": 48, "n_inner": 48, "ffn_hidden_size": 48, "mlp_dim": 48, "d_inner": 48,
    "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16,
    "expert_ffn_hidden_size": 16, "intermediate_size_mlp": 48, "dense_intermediate_size": 48, "hidden_dim": 32,
    "num_attention_heads": 4, "n_head": 4, "n_heads": 4, "num_heads": 4, "encoder_attention_heads": 4, "num_heads_kv": 2,
    "decoder_attention_heads": 4, "attention_heads": 4, "num_key_value_heads": 2, "kv_n_heads": 2, "num_kv_heads": 2,
    "num_hidden_layers": 2, "n_layer": 2, "n_layers": 2, "num_layers": 2, "encoder_layers": 2, "decoder_layers": 2, "depth": 2,
    "num_decoder_layers": 2, "num_encoder_layers": 2, "num_local_layers": 2,
    "head_dim": 8, "d_kv": 8, "kv_channels": 8, "attention_head_dim": 8, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8,
    "v_head_dim": 8, "q_lora_rank": 16, "kv_lora_rank": 16, "index_head_dim": 16, "index_n_heads": 2, "global_head_dim": 8,
    "linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
    "vocab_size": 160, "text_vocab_size": 160, "type_vocab_size": 2, "max_position_embeddings": 64, "n_positions": 64,
    "n_ctx": 64,
    "max_seq_len": 64, "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "moe_num_experts": 4, "n_group": 1,
    "topk_group": 1, "num_experts_per_tok": 2, "moe_topk": 2, "moe_top_k": 2, "top_k": 2, "n_shared_experts": 1,
    "image_size": 32, "patch_size": 8, "state_size": 8, "ssm_state_size": 8, "mamba_d_state": 8, "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_num_heads": 4, "mamba_head_dim": 16, "n_mamba_heads": 2, "time_step_rank": 4, "lru_width": 32, "projection_dim": 32,
    "attention_hidden_size": 32, "conv_kernel": 4, "num_nextn_predict_layers": 0, "first_k_dense_replace": 1,
    "out_hidden_size": 32,
    "vocab_size_per_layer_input": 160, "hidden_size_per_layer_input": 8, "num_kv_shared_layers": 0, "laurel_rank": 8,
    "audio_vocab_size": 160, "word_embed_proj_dim": 32, "embedding_dim": 32, "num_mel_bins": 16, "max_source_positions": 32,
    "max_target_positions": 64, "num_latents": 8, "cross_hidden_size": 32, "qformer_hidden_size": 32, "moe_layer_end_index": 1,
    "n_mels": 16, "vision_hidden_size": 32, "text_hidden_size": 32, "num_hash_layers": 0, "char_vocab_size": 64,
    "local_layers": 1,
}  # fmt: skip
LISTS: dict[str, Any] = {"mrope_section": [1, 1, 2], "cross_attention_layers": [1], "attn_layer_indices": [1]}
PER_LAYER = (
    "layer_types", "mlp_layer_types", "no_rope_layers", "moe_layers", "layers_block_type", "indexer_types", "mlp_only_layers",
    "attention_layers", "attention_types", "layer_rope_theta", "full_attn_idxs", "num_attention_heads_per_layer",
)  # fmt: skip
"""Lists with an entry a layer: the class computes them anew for two layers."""


def classes() -> Iterator[tuple[str, str]]:
    """(model type, class) of every model type, its foremost class."""
    seen = set()
    for table in HEADS:
        for kind, names in getattr(modeling_auto, table, {}).items():
            name = names[0] if isinstance(names, (tuple, list)) else names
            if kind not in seen and kind in CONFIG_MAPPING and hasattr(transformers, name):
                seen.add(kind)
                yield kind, name


def tiny(kind: str, name: str, seed: int = 0) -> torch.nn.Module | None:
    """A tiny model of the class, or None when its default configuration cannot be made small this way."""
    cls, config_class = getattr(transformers, name), CONFIG_MAPPING[kind]
    for attempt in range(4):
        try:
            config = small(config_class, attempt)
            with warnings.catch_warnings(), torch.device("meta"):
                warnings.simplefilter("ignore")
                size = sum(p.numel() for p in cls(copy.deepcopy(config)).parameters())
            if size > MOST_PARAMETERS:
                continue
            torch.manual_seed(seed)
            return cls(config).eval()
        except Exception:  # noqa: BLE001 - any class may refuse small numbers in its own way; the next attempt uses others
            continue
    return None


def small(config_class: Any, attempt: int) -> Any:
    """A configuration of small numbers; classes differ in what they accept, so there are four attempts."""
    given = config_class().to_dict()
    shrunk = _shrink(given, attempt)
    shrunk.pop("transformers_version", None)
    if attempt in (0, 2):
        return config_class.from_dict(shrunk)
    accepted = set(inspect.signature(config_class.__init__).parameters) | set(SMALL)
    return config_class(
        **{key: value for key, value in shrunk.items() if key in accepted and (key in SMALL or key.endswith("config"))}
    )


def _shrink(table: dict[str, Any], attempt: int) -> dict[str, Any]:
    found = {}
    for key, value in table.items():
        if key in PER_LAYER:
            continue
        if isinstance(value, dict):
            found[key] = _shrink(value, attempt) if str(key).endswith("config") else value
        elif key in LISTS and value is not None:
            found[key] = LISTS[key]
        elif key in SMALL and value is not None and not isinstance(value, (list, bool)):
            found[key] = (
                SMALL[key] if attempt < 2 or key not in ("head_dim", "num_key_value_heads") else 8 if key == "head_dim" else 4
            )
        elif (
            isinstance(value, list)
            and value
            and key in ("depths", "hidden_sizes", "embed_dims", "num_heads", "encoder_embed_dim")
        ):
            found[key] = [2 if key == "depths" else 4 if key == "num_heads" else 32] * len(value)
        elif key.endswith("_token_id") and isinstance(value, int):
            found[key] = min(value, 150)
        elif key.endswith("_token_id") and isinstance(value, list):
            found[key] = [min(v, 150) for v in value]
        else:
            found[key] = value
    return found
