"""What a config says of single layers, carried along when slices drop, repeat or mix layers; or a refusal that names the setting.

Settings belong to layers in four forms. Lists with an entry a layer are cut with the layers. Lists of layer numbers are
renumbered. Rules (an interval, a period, "the first k") are kept where they say the same of every layer as before, rewritten
where the new order can be put that way, and refused otherwise. What a class computes when its config leaves it out is written.
Source: the configuration and modelling code of transformers 5.23.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, Final

from mcp_server.errors import Incompatible
from mcp_server.formats.identity import text_section
from mcp_server.formats.tensor_names import layer_key

Section = dict[str, Any]
_NUMBERED: Final = re.compile(r"(?:layers|idxs|indices|ids|indexes)$")
_RULE: Final = re.compile(
    r"(?=.*(?:layer|attn|attention|moe|expert|sliding|window|dense|sparse|rope|block))"
    r"(?:.*_|)(?:interval|pattern|period|offset|step|freq|frequency|every_n_layers|replace|start_index|end_index)$"
)
_STANDS_FOR: Final = {
    "sliding_window_pattern": "layer_types",
    "_sliding_window_pattern": "layer_types",
    "global_attn_every_n_layers": "layer_types",
    "full_attention_interval": "layer_types",
    "max_window_layers": "layer_types",
    "no_rope_layer_interval": "no_rope_layers",
    "interleave_moe_layer_step": "moe_layers",
}
"""A rule that is read only while the list on the right is absent."""

_RULES: Final[dict[str, Callable[[Section, int], object]]] = {
    "sliding_window_pattern": lambda c, i: _pattern(c["sliding_window_pattern"], i),
    "_sliding_window_pattern": lambda c, i: _pattern(c["_sliding_window_pattern"], i),
    "full_attention_interval": lambda c, i: (i + 1) % c["full_attention_interval"] == 0,
    "no_rope_layer_interval": lambda c, i: (i + 1) % c["no_rope_layer_interval"] == 0,
    "interleave_moe_layer_step": lambda c, i: (i + 1) % c["interleave_moe_layer_step"] == 0,
    "decoder_sparse_step": lambda c, i: (i + 1) % c["decoder_sparse_step"] == 0,
    "global_attn_every_n_layers": lambda c, i: i % c["global_attn_every_n_layers"] == 0,
    "moe_layer_freq": lambda c, i: i % c["moe_layer_freq"] == 0,
    "attn_layer_period": lambda c, i: i % c["attn_layer_period"] == c.get("attn_layer_offset", 0),
    "attn_layer_offset": lambda c, i: i % c.get("attn_layer_period", 1) == c["attn_layer_offset"],
    "expert_layer_period": lambda c, i: i % c["expert_layer_period"] == c.get("expert_layer_offset", 0),
    "expert_layer_offset": lambda c, i: i % c.get("expert_layer_period", 1) == c["expert_layer_offset"],
    "moe_layer_interval": lambda c, i: (i + 1) % c["moe_layer_interval"] == 0,
    "moe_layer_start_index": lambda c, i: i >= c["moe_layer_start_index"],
    "moe_layer_end_index": lambda c, i: i <= c["moe_layer_end_index"],
    "cross_layer_interval": lambda c, i: i % c["cross_layer_interval"] == 0,
    "max_window_layers": lambda c, i: bool(c.get("use_sliding_window")) and i >= c["max_window_layers"],
    "first_k_dense_replace": lambda c, i: i < c["first_k_dense_replace"],
    "num_dense_layers": lambda c, i: i < c["num_dense_layers"],
    "num_hash_layers": lambda c, i: i < c["num_hash_layers"],
    "scale_attn_by_inverse_layer_idx": lambda c, i: i if c["scale_attn_by_inverse_layer_idx"] else None,
    "num_kv_shared_layers": lambda c, i: i if c["num_kv_shared_layers"] else None,
}
"""Rule → what it says of layer i (from 0)."""
_LEADING: Final = ("first_k_dense_replace", "num_dense_layers", "num_hash_layers")
"""Rules of the form "the first k layers": any order in which those come first can be put that way."""
_CYCLES: Final = ("block_types",)
"""Lists that are repeated over the layers."""

_SLIDING, _FULL, _LINEAR = "sliding_attention", "full_attention", "linear_attention"
_COMPUTED: Final[dict[str, tuple[str, tuple[Any, ...], tuple[str, ...]]]] = {
    "afmoe": ("layer_types", (_SLIDING,) * 3 + (_FULL,), ("global_attn_every_n_layers",)),
    "cohere2": ("layer_types", (_SLIDING,) * 3 + (_FULL,), ("sliding_window_pattern",)),
    "cwm": ("layer_types", (_FULL,) + (_SLIDING,) * 3, ()),
    "exaone4": ("layer_types", (_SLIDING,) * 3 + (_FULL,), ("sliding_window_pattern",)),
    "gemma2": ("layer_types", (_SLIDING, _FULL), ()),
    "gemma3_text": ("layer_types", (_SLIDING,) * 5 + (_FULL,), ("sliding_window_pattern", "_sliding_window_pattern")),
    "gemma3n_text": ("layer_types", (_SLIDING,) * 4 + (_FULL,), ()),
    "gpt_oss": ("layer_types", (_SLIDING, _FULL), ()),
    "llama4_text": ("no_rope_layers", (1, 1, 1, 0), ("no_rope_layer_interval",)),
    "modernbert": ("layer_types", (_FULL, _SLIDING, _SLIDING), ("global_attn_every_n_layers",)),
    "modernbert-decoder": ("layer_types", (_FULL, _SLIDING, _SLIDING), ("global_attn_every_n_layers",)),
    "olmo3": ("layer_types", (_SLIDING,) * 3 + (_FULL,), ()),
    "qwen3_next": ("layer_types", (_LINEAR,) * 3 + (_FULL,), ("full_attention_interval",)),
    "qwen3_5_text": ("layer_types", (_LINEAR,) * 3 + (_FULL,), ("full_attention_interval",)),
    "qwen3_5_moe_text": ("layer_types", (_LINEAR,) * 3 + (_FULL,), ("full_attention_interval",)),
    "smollm3": ("no_rope_layers", (1, 1, 1, 0), ("no_rope_layer_interval",)),
    "vaultgemma": ("layer_types", (_SLIDING, _FULL), ()),
}
"""model_type → (list, the cycle that the class computes when it is absent, the rules that would change the cycle's length)."""
_BY_NUMBER: Final = {
    "diffllama": "lambda_init, which its code computes from the layer's number",
    "zamba": "its shared blocks, which its code takes by the layer's number",
    "zamba2": "its shared blocks, which its code takes by the layer's number",
    "deepseek_v4": "layer_types, which its code computes from the number of layers",
    "kimi_linear": "layer_types, which its code computes from the number of layers",
}


def layer_settings(donor: dict[str, Any], layers: Sequence[tuple[dict[str, Any], int]]) -> Section:
    """Key → value for the output's config (its text part), given the donor's config and (config, layer) of each output layer.

    None means that the key must go. Raises `Incompatible` for a setting that the new layers cannot keep.
    """
    section = text_section(donor)
    sections = [(text_section(config), layer) for config, layer in layers]
    count = _count(section)
    found: Section = {key: len(layers) for key in [layer_key(section)] if key}
    if [layer for _, layer in sections] == list(range(count)) and all(_same(part, section) for part, _ in sections):
        return found
    if why := _BY_NUMBER.get(str(section.get("model_type"))):
        raise _refusal("the architecture", section.get("model_type"), why)
    found |= _written_out(section, sections)
    for key, value in section.items():
        if key in found:
            continue
        spelled = isinstance(value, str) and key.endswith("pattern")  # a letter a layer
        if (spelled or isinstance(value, list)) and len(value) == count and not _numbers_layers(key, value, count):
            found[key] = _entries(key, value, sections)
        elif isinstance(value, list) and _numbers_layers(key, value, count):
            held = [layer in _list(key, part) for part, layer in sections]
            found[key] = [new for new, there in enumerate(held) if there]
        elif key in _CYCLES and isinstance(value, list) and value:
            found[key] = [_list(key, part)[layer % len(_list(key, part))] for part, layer in sections]
        elif key == "attention_types" and isinstance(value, list):
            found[key] = [[[kind], 1] for kind in (_types(part)[layer] for part, layer in sections)]
    for key, value in section.items():
        if key not in found and value is not None and not isinstance(value, (list, dict)):
            found |= _rule(key, value, section, sections, found)
    return found


def _rule(key: str, value: Any, section: Section, sections: Sequence[tuple[Section, int]], found: Section) -> Section:
    """What becomes of a rule: {} when it holds as it is."""
    if key not in _RULES:
        if _RULE.match(key) and isinstance(value, (int, str)) and not isinstance(value, bool) and value not in (0, 1):
            raise _refusal(key, value, "it may speak of layers by their number, and how is not known here")
        return {}
    says = _RULES[key]
    try:
        before = [says(part, layer) for part, layer in sections]
        after = [says(section, new) for new in range(len(sections))]
    except (KeyError, TypeError, ZeroDivisionError):
        before, after = [None], [key]
    if before == after:
        return {}
    if found.get(_STANDS_FOR.get(key, "")) is not None:
        return {key: None}
    if key in _LEADING:
        leading = before.index(False) if False in before else len(before)
        if not any(before[leading:]):
            return {key: leading}
    raise _refusal(key, value, "the layers that are left cannot be described by it")


def _written_out(section: Section, sections: Sequence[tuple[Section, int]]) -> Section:
    """The list that the class would compute from the old numbers, when the config leaves it out."""
    computed = _COMPUTED.get(str(section.get("model_type")))
    if computed is None or isinstance(section.get(computed[0]), list):
        return {}
    key, cycle, rules = computed
    for part, _ in sections:
        for rule in rules:
            if part.get(rule) not in (None, len(cycle)):
                raise _refusal(
                    rule, part[rule], f"the config has no {key}; load and save it with transformers, which writes {key}"
                )
    return {key: [cycle[layer % len(cycle)] for _, layer in sections]}


def _entries(key: str, value: Any, sections: Sequence[tuple[Section, int]]) -> Any:
    entries = [_list(key, part)[layer] if len(_list(key, part)) == _count(part) else None for part, layer in sections]
    if None in entries and not (isinstance(value, list) and None in value):
        raise _refusal(key, value, "a source does not give it for each of its layers")
    return "".join(map(str, entries)) if isinstance(value, str) else entries


def _numbers_layers(key: str, value: Any, count: int) -> bool:
    """A list of layer numbers, rather than one with an entry for each layer."""
    numbers = isinstance(value, list) and bool(value) and all(type(item) is int and 0 <= item < count for item in value)
    return bool(numbers and _NUMBERED.search(key) and value == sorted(set(value)) and (len(value) != count or count > 2))


def _list(key: str, section: Section) -> Any:
    value = section.get(key)
    return value if isinstance(value, (list, str)) else []


def _types(section: Section) -> list[Any]:
    """GPT-Neo's attention_types, [[kinds, times], …], one entry a layer."""
    return [kind for kinds, times in section.get("attention_types") or [] for _ in range(times) for kind in kinds]


def _pattern(value: Any, layer: int) -> object:
    return value[layer % len(value)] if isinstance(value, str) else (layer + 1) % value == 0


def _count(section: Section) -> int:
    key = layer_key(section)
    return int(section[key]) if key else 0


def _same(one: Section, other: Section) -> bool:
    """Whether two configs say the same of their layers."""
    speaks = [key for key in {**one, **other} if key in _RULES or _RULE.match(key) or isinstance(one.get(key), list)]
    return one is other or all(one.get(key) == other.get(key) for key in speaks if key != "architectures")


def _refusal(key: str, value: Any, why: str) -> Incompatible:
    shown = str(value) if len(str(value)) < 60 else f"{str(value)[:57]}…"
    return Incompatible(
        f"these slices do not keep {key} ({shown}), a setting of single layers: {why}",
        "choose slices that keep the pattern of the layers (whole periods), or merge without slices",
    )
