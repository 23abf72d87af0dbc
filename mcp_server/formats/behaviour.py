"""Settings of a config that change what the same weights compute, read by meaning: the spelling does not count.

The keys are those of transformers' configs up to 5.23: `rope_theta` and `rope_scaling` at the top, or both in `rope_parameters`;
`type` or `rope_type`; the language part of a multimodal config in `text_config`.
"""

from __future__ import annotations

from typing import Any, Final

ROTATED: Final = "positions are rotated differently; the output takes the base's value, and the other source's attention suffers"
WHY: Final = {
    "rope_theta": ROTATED,
    "rope_scaling": ROTATED,
    "rope_share": ROTATED,
    "sliding_window": "attention reached another distance; the output takes the base's value",
    "hidden_act": "the weights were trained behind another activation; the output takes the base's",
    "norm_eps": "the norms divide by another floor; the output takes the base's value",
    "scales": "embeddings, attention or logits are scaled differently; the output takes the base's values",
}
"""Setting → why a difference matters."""

LABELS: Final = {
    "rope_theta": "rope theta", "rope_scaling": "rope scaling", "rope_share": "share of rope", "hidden_act": "activation",
    "sliding_window": "attention window", "norm_eps": "norm epsilon", "scales": "scale factors",
}  # fmt: skip
USUAL_THETA: Final = 10_000.0
"""What rotary models use whose config leaves it out."""

_THETA = ("rope_theta", "rotary_emb_base")
_SHARE = ("partial_rotary_factor", "rotary_pct", "rope_pct")
_ACTIVATION = ("hidden_act", "hidden_activation", "activation_function", "activation")
_EPSILON = ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_eps", "norm_epsilon")
_SCALES = (
    "embedding_multiplier", "attention_multiplier", "residual_multiplier", "logits_scaling", "logit_scale",
    "attn_logit_softcapping", "final_logit_softcapping", "query_pre_attn_scalar", "scale_emb", "scale_depth",
)  # fmt: skip
_SAME_ACTIVATION = {"swish": "silu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu_fast": "gelu_tanh"}


def behaviour(config: dict[str, Any]) -> dict[str, Any]:
    """Setting → its value in one form; None where the config does not say."""
    inner = config.get("text_config")
    flat = config | inner if isinstance(inner, dict) else config
    rope = flat.get("rope_parameters")
    nested = [part for part in rope.values() if isinstance(part, dict)] if isinstance(rope, dict) else []
    table = rope if isinstance(rope, dict) and not nested else {}
    window = flat.get("sliding_window") if flat.get("use_sliding_window", True) else None
    activation = _first(flat, _ACTIVATION)
    return {
        "rope_theta": [_plain(part) for part in nested] or _number(_first(flat, _THETA) or _first(table, _THETA)),
        "rope_scaling": None if nested else _scaling(flat.get("rope_scaling")) or _scaling(table),
        "rope_share": _number(_first(flat, _SHARE) or _first(table, _SHARE)),
        "sliding_window": window,
        "hidden_act": _SAME_ACTIVATION.get(str(activation), activation),
        "norm_eps": _number(_first(flat, _EPSILON)),
        "scales": {key: _number(flat[key]) for key in _SCALES if flat.get(key) is not None} or None,
    }


def differing(configs: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Setting → name → value, for the settings in which the configs, given by name, differ."""
    read = {name: behaviour(config) for name, config in configs.items()}
    if any(values["rope_theta"] is not None for values in read.values()):
        for values in read.values():
            values["rope_theta"] = values["rope_theta"] or USUAL_THETA
    found = {}
    for setting in WHY:
        values = {name: each[setting] for name, each in read.items()}
        if len({repr(value) for value in values.values()}) > 1 and not _unsaid(setting, values):
            found[setting] = values
    return found


def _unsaid(setting: str, values: dict[str, Any]) -> bool:
    """An epsilon or a share that only some configs state may well be the others' default: that is not known to differ."""
    return setting in ("norm_eps", "rope_share") and len({repr(value) for value in values.values() if value is not None}) < 2


def _scaling(rope: Any) -> dict[str, Any] | None:
    """The scaling of rotary positions without its theta; None for the default kind."""
    if not isinstance(rope, dict):
        return None
    kind = rope.get("rope_type", rope.get("type"))
    if kind in (None, "default"):
        return None
    return {"rope_type": kind, **{key: value for key, value in _plain(rope).items() if key not in ("type", *_THETA, *_SHARE)}}


def _plain(table: dict[str, Any]) -> dict[str, Any]:
    """In order of the keys, whole numbers and fractions alike."""
    return {key: _number(value) for key, value in sorted(table.items()) if value is not None}


def _number(value: Any) -> Any:
    if isinstance(value, list):
        return [_number(item) for item in value]
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _first(table: dict[str, Any], keys: tuple[str, ...]) -> Any:
    return next((table[key] for key in keys if table.get(key) is not None), None)
