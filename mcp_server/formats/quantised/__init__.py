"""Packed weights: which tensors of a checkpoint stand for one weight, how it is packed, and its true shape. Headers only.

A checkpoint counts as quantised by its tensors, whatever its config says and whatever their share of the file. One file a format;
`engine.unpack` turns codes into numbers. What no format explains is refused by name: packed bytes are never averaged as numbers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any, Final

from mcp_server.errors import Malformed, Unsupported
from mcp_server.formats.quantised import bitsandbytes, fp4, integers, scaled, torchao
from mcp_server.formats.quantised.part import Found, Packing, Part, Stored

__all__ = ["Packing", "Part", "Stored", "Weights", "find_weights", "holds_codes", "without_quantisation"]

_FORMATS: Final[tuple[Callable[[Stored], Found], ...]] = (
    bitsandbytes.find, fp4.find, integers.find, torchao.find, scaled.find,
)  # fmt: skip
_PACKED_DTYPES: Final = {"U8", "I8", "U16", "I16", "U32", "I32", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F6_E2M3", "F6_E3M2", "F4"}
_LEFT: Final = ("_scale_inv", *(f".{leaf}" for leaf in scaled.CACHE_SCALES))
_BUFFER: Final = re.compile(
    r"(?:position_ids|token_type_ids|num_batches_tracked|relative_position_index|masked_bias|attn\.bias|attention\.bias|tid2eid|mask)$"
)
_UNREAD: Final = (
    (re.compile(r"\.(?:W_q|meta)$"), "HQQ", "dequantise it with hqq"),
    (re.compile(r"\.(?:codebooks|codes)$"), "AQLM", "dequantise it with aqlm"),
    (re.compile(r"\.(?:centroids|indices|res_centroids)$"), "VPTQ", "dequantise it with vptq"),
    (re.compile(r"\.weight\._(?:data|scale|shift)$"), "optimum-quanto", "dequantise it with optimum-quanto"),
    (re.compile(r"\.(?:Qidxs|SU|SV|trellis)$"), "QuIP# or EXL3", "use the unquantised model"),
    (re.compile(r"\.(?:q_weight|q_scale|q_groups|q_invperm)$"), "EXL2", "use the unquantised model"),
)
_METHODS: Final = {
    "hqq": ("HQQ", "dequantise it with hqq"),
    "quanto": ("optimum-quanto", "dequantise it with optimum-quanto"),
    "aqlm": ("AQLM", "dequantise it with aqlm"),
    "vptq": ("VPTQ", "dequantise it with vptq"),
    "spqr": ("SpQR", "dequantise it with spqr_quant"),
    "eetq": ("EETQ", "load it with transformers and EETQ, unpack each weight and save it"),
    "bitnet": ("BitNet's ternary codes", "take the checkpoint with bf16 weights that BitNet models are published with as well"),
    "higgs": ("HIGGS", "dequantise it with transformers and flute (HiggsConfig, dequantize)"),
    "fp_quant": ("FP-Quant", "dequantise it with fp_quant"),
    "quark": ("AMD Quark", "export it from Quark unquantised"),
    "sinq": ("SINQ", "dequantise it with sinq"),
    "exl2": ("EXL2", "use the unquantised model"),
    "exl3": ("EXL3", "use the unquantised model"),
    "quip": ("QuIP#", "use the unquantised model"),
    "bitblas": ("BitBLAS", "convert it to GPTQ's layout with GPTQModel"),
    "marlin": ("Marlin", "convert it to GPTQ's layout with GPTQModel"),
}
"""What a config's `quant_method` names and is not read here → its name, and what converts it."""
_ALSO_AS_OTHERS: Final = {"quark", "bitnet", "bitblas", "marlin"}
"""Methods of these whose tensors can be in a form that is read (Quark's FP8), or are refused with a better reason."""
_UNQUANTISED: Final = "merge the unquantised model that it was made from, and quantise the result"


@dataclass(frozen=True, slots=True)
class Weights:
    """What a checkpoint's tensors stand for: `packed` weights by name, and which stored names are `replaced` by them."""

    packed: dict[str, Packing]
    replaced: dict[str, str]
    dropped: frozenset[str]


def find_weights(stored: Stored) -> Weights:
    """Every packed weight of a checkpoint; none for a plain one.

    Raises `Malformed` when the parts of a weight do not fit together, `Unsupported` for a packing that is not read.
    """
    scaled.refuse_beside_plain(stored)
    if not holds_codes((part.name, part.dtype) for part in stored.parts.values()):
        return Weights({}, {}, frozenset())
    _refuse_rotated(stored)
    codes = next((part for part in stored.parts.values() if part.dtype in _PACKED_DTYPES), None)
    if codes is not None and (method := _method(stored)) in _METHODS and method not in _ALSO_AS_OTHERS:
        _refuse(stored, codes)
    packed: dict[str, Packing] = {}
    replaced: dict[str, str] = {}
    for find in _FORMATS:
        for name, (packing, parts) in find(stored).items():
            if taken := [part for part in parts if part in replaced]:
                raise Malformed(f"{stored.where}: {taken[0]} belongs to {replaced[taken[0]]} and to {name}", _UNQUANTISED)
            if name in stored.parts and name not in parts:
                raise Malformed(
                    f"{stored.where}: {stored.parts[name]} is stored beside {parts[0]}, which stands for it too",
                    "remove one of the two, or download the checkpoint again",
                )
            packed[name] = packing
            replaced |= dict.fromkeys(parts, name)
    for name, part in stored.parts.items():
        if name not in replaced and part.dtype in _PACKED_DTYPES and not _BUFFER.search(name):
            _refuse(stored, part)
    modules = {name.rpartition(".")[0] for name in packed}
    unread = _activations(stored, modules) if packed or stored.settings else frozenset()
    return Weights(packed, replaced, unread - replaced.keys())


def holds_codes(tensors: Iterable[tuple[str, str]]) -> bool:
    """Whether tensors of these names and dtypes may be packed, or what quantisation left: a model that has none is plain."""
    return any(dtype in _PACKED_DTYPES or name.endswith(_LEFT) for name, dtype in tensors)


def _activations(stored: Stored, packed: Collection[str]) -> frozenset[str]:
    """Scales of what flows through a quantised model: at packed modules and the blocks around them, and those of attention and
    its cache at plain modules too."""
    plain = {name.removesuffix(".weight") for name in stored.parts if name.endswith(".weight")}
    owners = dict.fromkeys(scaled.ACTIVATION_SCALES, _with_blocks(packed))
    owners |= dict.fromkeys(scaled.CACHE_SCALES, _with_blocks({*packed, *plain}))
    return frozenset(name for name in stored.parts if (parts := name.rpartition("."))[0] in owners.get(parts[2], ()))


def _with_blocks(modules: Collection[str]) -> set[str]:
    return {*modules, *(module.rpartition(".")[0] for module in modules)}


def _refuse_rotated(stored: Stored) -> None:
    """Weights that were rotated before they were packed: in another basis, no difference from another model means anything."""
    transforms = stored.settings.get("transform_config")
    groups = transforms.get("config_groups") if isinstance(transforms, dict) else None
    if groups or stored.settings.get("rotation_config"):
        raise Unsupported(
            f"{stored.where}: its weights were rotated before they were packed (transform_config), so they cannot be compared "
            "with those of another model",
            _UNQUANTISED,
        )


def _method(stored: Stored) -> str:
    return str(stored.settings.get("quant_method", "")).lower().replace("-", "_")


def _refuse(stored: Stored, part: Part) -> None:
    named = str(stored.settings.get("quant_method", "")) if stored.settings else ""
    known = _METHODS.get(_method(stored))
    known = known or next(
        ((scheme, tool) for pattern, scheme, tool in _UNREAD if any(pattern.search(name) for name in stored.parts)), None
    )
    if known:
        scheme, tool = known
        raise Unsupported(
            f"{stored.where} is quantised by {scheme}, which is not read here: {part}", f"{tool}, or {_UNQUANTISED}"
        )
    said = f"quantised ({named})" if named else "quantised in a way that is not known here"
    raise Unsupported(f"{stored.where} is {said}: {part} holds packed codes, not numbers", _UNQUANTISED)


def without_quantisation(config: dict[str, Any]) -> dict[str, Any]:
    """A config that says nothing of packed weights: what a merge of unpacked ones needs.

    What is said of plain weights that a model rounds while it runs (BitNet's online quantisation) stays: they were trained so.
    """
    said = config.get("quantization_config")
    online = isinstance(said, dict) and (said.get("quantization_mode") == "online" or said.get("linear_class") == "autobitlinear")
    gone = {"compression_config"} if online else {"quantization_config", "compression_config"}
    kept = {key: value for key, value in config.items() if key not in gone}
    return {key: without_quantisation(value) if isinstance(value, dict) else value for key, value in kept.items()}
