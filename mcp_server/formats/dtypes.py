"""The dtype that a model's config names, under `dtype` or, in older files, `torch_dtype`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

DTYPE_KEYS: Final = ("dtype", "torch_dtype")
COMPUTE_DTYPES: Final = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}
"""Torch's name of a dtype that models are computed in → safetensors'."""


def named_dtype(config: Mapping[str, Any]) -> str | None:
    """Torch's name (`bfloat16`), or None where the config names none."""
    named = next((config[key] for key in DTYPE_KEYS if isinstance(config.get(key), str)), None)
    return named and named.removeprefix("torch.")


def compute_dtype(config: Mapping[str, Any]) -> str:
    """Safetensors' name of the dtype that a model is computed in: as its config says, else bfloat16."""
    return COMPUTE_DTYPES.get(named_dtype(config) or "bfloat16", "BF16")
