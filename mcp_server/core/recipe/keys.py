"""The keys that mergekit reads at each level. It ignores every other key without a word, so this is what a typo is held against.

Source: mergekit 0.1.5, the fields of `MergeConfiguration` and its parts, `TokenizerConfig` and `MoEMergeConfig`.
"""

from __future__ import annotations

from typing import Final

TOP: Final = (
    "merge_method", "base_model", "models", "slices", "modules", "parameters",
    "dtype", "out_dtype", "tokenizer", "tokenizer_source", "chat_template",
)  # fmt: skip
STAGE: Final = (*TOP, "name")
INPUT: Final = ("model", "parameters")
SLICE_INPUT: Final = ("model", "layer_range", "parameters")
SLICE: Final = ("sources", "base_model", "parameters")
"""mergekit also takes `residual_weight` here and does nothing with it."""
MODULE: Final = ("models", "slices", "parameters")
FILTER: Final = ("value", "filter")
TOKENIZER: Final = ("source", "tokens", "pad_to_multiple_of")
TOKEN: Final = ("source", "force")
MOE: Final = ("base_model", "experts", "gate_mode", "dtype", "experts_per_token", "shared_experts", "architecture")
EXPERT: Final = ("source_model", "positive_prompts", "negative_prompts", "noise_scale", "residual_scale")

DTYPES: Final = ("bfloat16", "float16", "float32", "float64")
GATE_MODES: Final = ("hidden", "cheap_embed", "random", "uniform_random")
CHAT_TEMPLATES: Final = ("auto", "alpaca", "chatml", "exaone", "llama3", "mistral")
