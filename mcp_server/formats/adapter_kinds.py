"""The kinds of PEFT adapters: which are merged by a formula, and which are refused, by name and with the reason."""

from __future__ import annotations

import math
from typing import Any, Final

from mcp_server.errors import Incompatible, Malformed, Unsupported
from mcp_server.formats.adapter_patterns import Scales
from mcp_server.formats.tensors import StoredTensor
from mcp_server.formats.updates import Product, Scaled, Update

KINDS: Final = ("LORA", "LOHA", "LOKR", "IA3", "VERA", "TRAINABLE_TOKENS")
MERGE_FIRST: Final = "merge it into its base with PEFT's merge_and_unload(), then merge the full models"
NO_MERGE: Final = "run it as an adapter beside the model; only adapters that change weights can be merged"

_PROMPTS: Final = ("PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "MULTITASK_PROMPT_TUNING", "ADAPTION_PROMPT", "CPT", "CARTRIDGE")
REFUSED: Final = {
    "use_qalora": "QALoRA pools its inputs by quantisation group",
    "lora_bias": "it adds a bias beside each B",
    "layer_replication": "it changes the number of layers",
    "alora_invocation_tokens": "it applies only after its invocation tokens, so it cannot be merged into weights",
    "use_bdlora": "its factors are block-diagonal",
    "arrow_config": "it routes between adapters at run time",
    "kasa_config": "it scales by singular values",
    "monteclora_config": "it samples its update",
}
_RUN_TIME: Final = ("alora_invocation_tokens", "arrow_config")
BASE_CHANGING: Final = ("pissa", "olora", "corda", "loftq", "eva_residual", "lora_ga")


def refuse_unsupported(ref: str, config: dict[str, Any]) -> None:
    """Raise `Unsupported` for a kind or a variant that has no formula here."""
    kind = kind_of(config)
    if not config.get("peft_type"):
        raise Malformed(
            f"adapter_config.json of {ref} names no peft_type", 'add it ("peft_type": "LORA" for LoRA), or save it again'
        )
    if kind in _PROMPTS or kind in ("XLORA", "POLY"):
        raise Unsupported(f"{ref} is a {kind} adapter: it adds inputs or routes at run time and changes no weight", NO_MERGE)
    if kind not in KINDS:
        raise Unsupported(f"{ref} is a {kind} adapter; {', '.join(KINDS)} are merged", MERGE_FIRST)
    for key, why in REFUSED.items():
        if config.get(key):
            raise Unsupported(f"{ref} uses {key}: {why}", NO_MERGE if key in _RUN_TIME else MERGE_FIRST)
    start = str(config.get("init_lora_weights", "")).lower()
    if start.startswith(BASE_CHANGING):
        raise Unsupported(
            f"{ref} was trained with init_lora_weights={config['init_lora_weights']!r}, which changes the base weights too",
            "save it as a plain LoRA: save_pretrained(..., path_initial_model_for_weight_conversion=...)",
        )


def kind_of(config: dict[str, Any]) -> str:
    return str(config.get("peft_type")).removeprefix("PeftType.").upper()


def other_update(
    ref: str,
    own: dict[str, Any],
    scales: Scales,
    stem: str,
    parts: dict[str, StoredTensor],
    shape: tuple[int, ...],
    shared: dict[str, StoredTensor],
) -> Update:
    """The update of one module of an adapter that is not LoRA."""
    kind = kind_of(own)
    names = set(parts)
    if kind == "IA3" and names == {"ia3_l"}:
        return _scaled(ref, stem, parts["ia3_l"], shape)
    if any(name.startswith(("hada_t", "lokr_t")) for name in names):
        raise Unsupported(f"{stem} of {ref} is a convolution in Tucker form", MERGE_FIRST)
    if kind == "LOHA" and names == {"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"}:
        made = (parts["hada_w1_a"].shape[0], parts["hada_w1_b"].shape[1])
        return _sized(ref, stem, Product("LOHA", parts, _scale(own, scales, stem)), made, shape)
    if kind == "LOKR":
        first = _sides(parts, "lokr_w1")
        second = _sides(parts, "lokr_w2")
        if first and second:
            made = (first[0] * second[0], first[1] * second[1])
            return _sized(ref, stem, Product("LOKR", parts, _scale(own, scales, stem)), made, shape)
    if kind == "VERA" and names == {"vera_lambda_b", "vera_lambda_d"}:
        if set(shared) != {"A", "B"}:
            raise Unsupported(
                f"{ref} holds no vera_A and vera_B: they are drawn anew from its seed when it is loaded",
                "save it with save_projection=True, or " + MERGE_FIRST,
            )
        made = (parts["vera_lambda_b"].shape[0], shape[-1])
        if shared["B"].shape[0] < made[0] or shared["A"].shape[1] < made[1]:
            raise Incompatible(
                f"vera_A of {ref} is {list(shared['A'].shape)}, vera_B {list(shared['B'].shape)}, {stem} needs {list(made)}",
                "give a base of the adapter's size",
            )
        return _sized(ref, stem, Product("VERA", parts | shared, 1.0), made, shape)
    raise Malformed(f"{stem} of {ref}, a {kind} adapter, has {sorted(names)}", "save the adapter again")


def _sides(parts: dict[str, StoredTensor], name: str) -> tuple[int, int] | None:
    if name in parts and len(parts[name].shape) == 2:
        return parts[name].shape[0], parts[name].shape[1]
    a, b = parts.get(f"{name}_a"), parts.get(f"{name}_b")
    return (a.shape[0], b.shape[1]) if a is not None and b is not None else None


def _sized(ref: str, stem: str, update: Product, made: tuple[int, int], shape: tuple[int, ...]) -> Product:
    if made != (shape[0], math.prod(shape[1:])):
        raise Incompatible(
            f"{stem} of {ref} makes an update of {list(made)}, the base's weight is {list(shape)}",
            "give a base of the adapter's size",
        )
    return update


def _scaled(ref: str, stem: str, vector: StoredTensor, shape: tuple[int, ...]) -> Scaled:
    """`(1, in)` scales the inputs of a feed-forward module, `(out, 1)` the outputs of the others."""
    if len(shape) != 2 or vector.shape not in ((shape[0], 1), (1, shape[1])):
        raise Incompatible(
            f"{stem} of {ref} has {list(vector.shape)} factors, the base's weight is {list(shape)}",
            MERGE_FIRST if vector.shape in ((shape[-1], 1), (1, shape[0])) else "give a base of the adapter's size",
        )
    return Scaled(vector, columns=vector.shape == (1, shape[1]) and vector.shape[0] == 1)


def _scale(own: dict[str, Any], scales: Scales, stem: str) -> float:
    rank = scales.rank.value((stem,), own.get("r", 8))
    alpha = scales.alpha.value((stem,), own.get("alpha", 8))
    if not isinstance(rank, int) or not isinstance(alpha, (int, float)) or not rank:
        raise Malformed(f"{stem} has the scale alpha={alpha!r} over r={rank!r}, which is no number", "save the adapter again")
    return float(alpha) / rank
