"""The output's config.json: the donor's, made to say what the output is: dtypes, layers, rows, and whether the head is tied."""

from __future__ import annotations

import copy
from typing import Any

from mcp_server.engine.plan import MergePlan
from mcp_server.formats import tensor_names
from mcp_server.formats.checkpoint import Checkpoint
from mcp_server.formats.dtypes import DTYPE_KEYS
from mcp_server.formats.identity import text_section
from mcp_server.formats.quantised import without_quantisation
from mcp_server.formats.tied import say_untied


def output_config(plan: MergePlan, *, own_head: bool = False) -> dict[str, Any]:
    """`own_head` says that the head that was written differs from the embedding, so that no flag may tie them."""
    donor = plan.sources[plan.recipe.donor]
    config = copy.deepcopy(without_quantisation(donor.checkpoint.config))
    if plan.stored_like is None:
        name_dtypes(config, [tensor.dtype for tensor in plan.tensors if tensor.how != "copied"])
    else:
        config = quantised_like(plan.sources[plan.stored_like].checkpoint, config)
    section = text_section(config)
    if plan.layers is not None:
        section |= plan.layer_settings
        for key in [key for key, value in plan.layer_settings.items() if value is None]:
            del section[key]
    rows = {tensor.name: tensor.shape[0] for tensor in plan.tensors if tensor_names.is_word_embedding(tensor.name)}
    if donor.embedding in rows:
        new, old = rows[donor.embedding], donor.checkpoint.tensors[donor.embedding].shape[0]
        if plan.vocabulary or new != old:
            section["vocab_size"] = new
    stores_head = any(tensor_names.is_head(tensor.name) for tensor in plan.tensors)
    untied = any(source.tied is False for source in plan.sources.values())
    if own_head or (stores_head and untied and donor.tied is not False):
        say_untied(config)
    return config


def quantised_like(model: Checkpoint, config: dict[str, Any]) -> dict[str, Any]:
    """`config`, saying of packed weights and dtypes what the model's says, at the top, where loaders look for it."""
    said = {key: model.config[key] for key in DTYPE_KEYS if key in model.config}
    kept = {key: value for key, value in config.items() if key not in DTYPE_KEYS}
    return kept | copy.deepcopy(said | ({"quantization_config": model.quantisation} if model.quantisation else {}))


def name_dtypes(config: dict[str, Any], dtypes: list[str]) -> None:
    """Every dtype key names what is stored; keys of parts are left alone only where the output itself holds several dtypes."""
    main = max(set(dtypes), key=dtypes.count) if dtypes else "float32"
    if not any(key in config for key in DTYPE_KEYS):
        config["torch_dtype"] = main
    parts = [config, *(part for key, part in config.items() if key.endswith("config") and isinstance(part, dict))]
    for part in parts if len(set(dtypes)) == 1 else [config]:
        for key in DTYPE_KEYS:
            if key in part:
                part[key] = main
