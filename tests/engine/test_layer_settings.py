"""Settings of single layers go with the layers that slices keep, or the slices are refused by the setting's name."""

from __future__ import annotations

from typing import Any

import pytest

from mcp_server.engine.layer_settings import layer_settings
from mcp_server.errors import Incompatible

S, F = "sliding_attention", "full_attention"


def settings(config: dict[str, Any], kept: list[int]) -> dict[str, Any]:
    full = {"num_hidden_layers": 6} | config
    return layer_settings(full, [(full, layer) for layer in kept])


@pytest.mark.parametrize(
    ("config", "kept", "wanted"),
    [
        ({}, [0, 1, 3], {}),
        ({"layer_types": [S, S, F, S, S, F]}, [0, 2, 5], {"layer_types": [S, F, F]}),
        ({"layer_types": [S, S, F, S, S, F]}, [0, 1, 2, 2, 3], {"layer_types": [S, S, F, F, S]}),
        (
            {"no_rope_layers": [1, 1, 1, 0, 1, 1], "no_rope_layer_interval": 4}, [3, 4],
            {"no_rope_layers": [0, 1], "no_rope_layer_interval": None},
        ),
        ({"mlp_only_layers": [0, 3]}, [0, 1, 3, 5], {"mlp_only_layers": [0, 2]}),
        ({"attn_layer_indices": [1, 4]}, [4, 5], {"attn_layer_indices": [0]}),
        ({"first_k_dense_replace": 2}, [1, 2, 3], {"first_k_dense_replace": 1}),
        ({"first_k_dense_replace": 2}, [0, 1, 4], {}),
        ({"decoder_sparse_step": 1}, [0, 4], {}),
        ({"decoder_sparse_step": 2}, [0, 1, 4, 5], {}),
        ({"hybrid_override_pattern": "M*M-MM"}, [1, 3, 4], {"hybrid_override_pattern": "*-M"}),
        ({"block_types": ["r", "r", "a"]}, [0, 2, 3], {"block_types": ["r", "a", "r"]}),
        ({"attention_types": [[["global", "local"], 3]]}, [1, 2], {"attention_types": [[["local"], 1], [["global"], 1]]}),
        ({"max_window_layers": 3, "use_sliding_window": False}, [4, 5], {}),
        ({"model_type": "gemma2"}, [1, 2, 4], {"layer_types": [F, S, S]}),
        (
            {"model_type": "gemma3_text", "sliding_window_pattern": 6}, [0, 5],
            {"layer_types": [S, F], "sliding_window_pattern": None},
        ),
        ({"model_type": "smollm3"}, [0, 3, 4], {"no_rope_layers": [1, 0, 1]}),
        ({"num_kv_shared_layers": 0, "scale_attn_by_inverse_layer_idx": False}, [1, 2], {}),
        ({"attn_layer_period": 3, "attn_layer_offset": 1}, [3, 4, 5], {}),
    ],
)  # fmt: skip
def test_settings_travel_with_their_layers(config: dict[str, Any], kept: list[int], wanted: dict[str, Any]) -> None:
    assert settings(config, kept) == {"num_hidden_layers": len(kept)} | wanted


@pytest.mark.parametrize(
    ("config", "kept", "named"),
    [
        ({"attn_layer_period": 3, "attn_layer_offset": 1}, [0, 2, 3], "attn_layer_period"),
        ({"decoder_sparse_step": 2}, [1, 2, 3], "decoder_sparse_step"),
        ({"first_k_dense_replace": 2}, [3, 0, 1], "first_k_dense_replace"),
        ({"max_window_layers": 3, "use_sliding_window": True}, [4, 5], "max_window_layers"),
        ({"scale_attn_by_inverse_layer_idx": True}, [1, 2], "scale_attn_by_inverse_layer_idx"),
        ({"num_kv_shared_layers": 2}, [0, 1, 4, 5], "num_kv_shared_layers"),
        ({"strange_attn_layer_interval": 3}, [0, 2], "strange_attn_layer_interval"),
        ({"model_type": "diffllama"}, [0, 2], "lambda_init"),
        ({"model_type": "gemma3_text", "sliding_window_pattern": 3}, [0, 2], "sliding_window_pattern"),
    ],
)
def test_what_cannot_be_kept_is_refused_by_name(config: dict[str, Any], kept: list[int], named: str) -> None:
    with pytest.raises(Incompatible, match=named):
        settings(config, kept)


def test_nothing_changes_where_every_layer_stays() -> None:
    config = {"model_type": "diffllama", "attn_layer_period": 5, "layer_types": [S, F] * 3}
    assert settings(config, list(range(6))) == {"num_hidden_layers": 6}


def test_layers_of_two_models_bring_their_own_settings() -> None:
    one = {"num_hidden_layers": 2, "layer_types": [S, F], "model_type": "gemma2"}
    two = {"num_hidden_layers": 3, "layer_types": [F, F, S], "model_type": "gemma2"}
    assert layer_settings(one, [(one, 0), (two, 2), (two, 0)]) == {"num_hidden_layers": 3, "layer_types": [S, S, F]}


def test_a_multimodal_config_keeps_them_in_its_text_part() -> None:
    config = {"model_type": "eyes", "text_config": {"num_hidden_layers": 3, "layer_types": [S, F, S], "model_type": "gemma2"}}
    assert layer_settings(config, [(config, 1), (config, 2)]) == {"num_hidden_layers": 2, "layer_types": [F, S]}
