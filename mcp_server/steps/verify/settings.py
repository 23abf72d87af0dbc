"""What the small files say, against base and sources: settings that change what the weights compute, token numbers, end of turn.

Only what no model of the merge says is a fault: a merge takes its settings from one of them. Slices, which rewrite settings of
layers, and tokenizers that a recipe builds are left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from mcp_server.errors import MergingError
from mcp_server.formats.behaviour import LABELS, differing
from mcp_server.formats.companions import GENERATION
from mcp_server.formats.identity import token_ids
from mcp_server.formats.recipe import Recipe
from mcp_server.formats.tensors import read_json
from mcp_server.recompute.merge import Merge
from mcp_server.schemas.evidence import Check

_DECIDES: Final = re.compile(
    r"^(?:n_heads?|num_heads|(?:num_|n_)?(?:\w+_)?(?:attention|kv|key_value|query)_heads|head_dim|\w+_head_dim|d_kv|kv_channels"
    r"|num_experts_per_tok|moe_topk?|top_?k_experts|experts_per_token|norm_topk_prob|routed_scaling_factor|n_group|topk_group"
    r"|scoring_func|topk_method|layer_types|mlp_layer_types|no_rope_layers|sliding_window_pattern|first_k_dense_replace"
    r"|decoder_sparse_step|(?:attn|expert)_layer_(?:period|offset)|use_qk_norm|qk_norm|qk_layernorm|alibi|use_alibi|multi_query"
    r"|new_decoder_architecture|parallel_attn|use_parallel_residual|scale_embedding|position_embedding_type|num_buckets"
    r"|relative_attention_num_buckets|relative_attention_max_distance|chunk_size|conv_kernel|patch_size|spatial_merge_size"
    r"|temporal_patch_size|feed_forward_proj|(?:num_)?(?:encoder|decoder)_layers|normalize_before|do_layer_norm_before|residual_dropout_alpha)$"
)
"""Keys of configs (transformers up to 5.23) whose value changes the result of the same weights."""


def checks(merge: Merge) -> Iterator[Check]:
    if merge.is_adapter or merge.base is None or merge.missing:
        return
    yield _settings(merge)
    if (check := _end_of_turn(merge)) is not None:
        yield check


def _settings(merge: Merge) -> Check:
    """Whether each setting is what some model of the merge has."""
    if merge.recipe is not None and _rewrites_layers(merge.recipe):
        return Check(name="settings", passed=True, detail="the recipe rewrites settings of layers; they are not compared")
    each = [_differences(merge.config, model.config, model.label) for model in merge.by_ref.values()]
    odd = [words for key, words in each[0].items() if all(key in found for found in each)] if each else []
    if odd:
        detail = f"config.json differs from every model of the merge: {'; '.join(odd[:8])}"
        return Check(name="settings", passed=False, detail=detail)
    return Check(name="settings", passed=True, detail="what config.json says of the computation is what the merged models say")


def _rewrites_layers(recipe: Recipe) -> bool:
    return recipe.kind != "merge" or recipe.in_parts or recipe.sliced


def _differences(ours: dict[str, Any], theirs: dict[str, Any], label: str) -> dict[str, str]:
    """Setting → how it differs, in words. One that only one of them states may be the other's default."""
    found = {}
    for setting, values in differing({"merge": ours, label: theirs}).items():
        one, other = values["merge"], values[label]
        if isinstance(one, dict) and isinstance(other, dict) and setting == "scales":
            one, other = ({key: each[key] for key in one.keys() & other.keys()} for each in (one, other))
        if one != other and (setting == "rope_scaling" or (one is not None and other is not None)):
            found[setting] = f"{LABELS[setting]} is {one}, {label} has {other}"
    known = dict(_plain(theirs))
    for key, value in _plain(ours):
        if value is not None and known.get(key) is not None and known[key] != value:
            found[key] = f"{key} is {value}, {label} has {known[key]}"
    return found


def _plain(config: dict[str, Any], front: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, dict) and key.endswith("config"):
            yield from _plain(value, f"{front}{key}.")
        elif _DECIDES.match(key):
            yield front + key, value


def other_numbers(merge: Merge, ids: dict[str, int]) -> str:
    """Tokens that have other numbers than in every model of the merge, in words; '' when one has the same, or it is unknown."""
    if merge.recipe is None or _builds_tokenizer(merge.recipe) or merge.missing:
        return ""
    moved: dict[str, list[str]] = {}
    for folder, label in _folders(merge):
        known = _ids(folder)
        if not known:
            continue
        others = [token for token, number in ids.items() if known.get(token, number) != number]
        if not others:
            return ""
        moved.setdefault(label, others)
    if not moved:
        return ""
    label, tokens = min(moved.items(), key=lambda item: len(item[1]))
    return (
        f"{len(tokens)} of {len(ids)} tokens have other numbers than in {label}, such as {tokens[0]!r} (here {ids[tokens[0]]}): "
        "the tokenizer is not the one of these weights"
    )


def _builds_tokenizer(recipe: Recipe) -> bool:
    return recipe.tokenizer_from == "union" or bool((recipe.tokenizer or {}).get("tokens"))


def _end_of_turn(merge: Merge) -> Check | None:
    """Whether generation ends at a token at which some model of the merge, or its own tokenizer, ends."""
    if merge.recipe is None or merge.recipe.tokenizer_from:
        return None
    ours, known = _ends(merge.folder, GENERATION), _eos_token(merge.folder)
    for folder, _ in _folders(merge):
        known |= _ends(folder, GENERATION) | _ends(folder, "config.json") | _eos_token(folder)
    if not ours or not known or ours & known:
        return None
    said, theirs = (", ".join(map(str, sorted(found))) for found in (ours, known))
    detail = f"{GENERATION} gives eos_token_id {said}; the merged models end at {theirs}: answers would not end"
    return Check(name="end_of_turn", passed=False, detail=detail)


def _ends(folder: Path, file: str) -> set[int]:
    value = _table(folder / file).get("eos_token_id")
    return {number for number in (value if isinstance(value, list) else [value]) if type(number) is int}


def _eos_token(folder: Path) -> set[int]:
    token = _table(folder / "tokenizer_config.json").get("eos_token")
    number = _ids(folder).get(str(token.get("content") if isinstance(token, dict) else token))
    return set() if number is None else {number}


def _ids(folder: Path) -> dict[str, int]:
    try:
        return token_ids(folder) or {}
    except MergingError:
        return {}


def _table(path: Path) -> dict[str, Any]:
    try:
        return read_json(path) if path.is_file() else {}
    except MergingError:
        return {}


def _folders(merge: Merge) -> Iterator[tuple[Path, str]]:
    """Every folder that a file of the merge may come from."""
    for source in merge.by_ref.values():
        yield source.folder, source.label
        if source.adapter is not None:
            yield source.adapter.folder, source.label
