"""What a PEFT LoRA adapter adds to its base: for each base tensor a low-rank ΔW, a replacement, or both. Headers only.

ΔW = scale · B·A, with scale = alpha/r, or alpha/√r for rank-stabilised LoRA; r and alpha may differ per module (`rank_pattern`,
`alpha_pattern`). Layers that store their weight as (in, out), Conv1D and embeddings, need (B·A)ᵀ. Trained biases and
`modules_to_save` are stored whole and replace the base's tensor, as PEFT does when it loads the adapter.

Not covered, each refused by name: DoRA and other PEFT types, and LoRA variants whose update is not B·A on top of the given base.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from mcp_server.errors import Incompatible, Malformed, NotAModel, Unsupported
from mcp_server.formats.checkpoint import StoredTensor, locate, require_float
from mcp_server.formats.safetensors import Header, read_header
from mcp_server.formats.tensors import read_json

_REFUSED: Final = {
    "use_dora": "DoRA rescales every row of the weight",
    "use_qalora": "QALoRA pools its inputs by quantisation group",
    "lora_bias": "it adds a bias beside each B",
    "layer_replication": "it changes the number of layers",
    "target_parameters": "it adapts parameters inside fused modules",
    "trainable_token_indices": "it trains single embedding rows",
    "alora_invocation_tokens": "it applies only after its invocation tokens, so it cannot be merged into weights",
    "use_bdlora": "its factors are block-diagonal",
    "arrow_config": "it routes between adapters at run time",
    "kasa_config": "it scales by singular values",
    "monteclora_config": "it samples its update",
}
_BASE_CHANGING: Final = ("pissa", "olora", "corda", "loftq", "eva_residual", "lora_ga")
_MAX_ALPHA: Final = 1e9
_REPEATED_GROUP: Final = re.compile(r"\)[*+{]")
_REPEAT: Final = re.compile(r"[*+{]")
_MAX_REPEATS: Final = 3
_KEY: Final = re.compile(r"(?P<module>.+)\.lora_(?P<part>A|B|embedding_A|embedding_B)(\.[^.]+)?(?P<weight>\.weight)?$")


@dataclass(frozen=True, slots=True)
class LowRank:
    """ΔW of one tensor. `a` is (r, in), `b` is (out, r); `transposed` says that ΔW is (scale·B·A)ᵀ."""

    a: StoredTensor
    b: StoredTensor
    rank: int
    scale: float
    transposed: bool


@dataclass(frozen=True, slots=True)
class Change:
    """What an adapter does to one base tensor: replace it, add a low-rank update to it, or both in this order."""

    replacement: StoredTensor | None = None
    low_rank: LowRank | None = None


@dataclass(frozen=True)
class Adapter:
    folder: Path
    config: dict[str, Any]
    changes: dict[str, Change]
    headers: dict[Path, Header]


def open_adapter(ref: str, base: dict[str, StoredTensor]) -> Adapter:
    """Read an adapter and match every one of its tensors to a tensor of `base`; one that matches nothing is an error."""
    folder = locate(ref)
    if not (folder / "adapter_config.json").is_file():
        raise NotAModel(f"{folder} has no adapter_config.json", "name the folder that PEFT saved, or a full model without a +")
    config = read_json(folder / "adapter_config.json")
    _refuse_unsupported(ref, config)
    file = folder / "adapter_model.safetensors"
    if not file.is_file():
        if (folder / "adapter_model.bin").is_file():
            raise NotAModel(
                f"{folder} holds a pickle adapter, which can run code when it is read",
                'if you trust it: python -c "import torch; from safetensors.torch import save_file; '
                f"save_file(torch.load('{folder}/adapter_model.bin', weights_only=True), '{file}')\"",
            )
        raise NotAModel(f"{folder} has no adapter_model.safetensors", "save the adapter with save_pretrained()")
    header = read_header(file)
    parts: dict[str, dict[str, StoredTensor]] = {}
    changes: dict[str, Change] = {}
    unmatched = []
    for key, info in header.tensors.items():
        stored = StoredTensor(file, header.data_start + info.begin, info.dtype, info.shape, info.elements)
        require_float(key, stored)
        if found := _KEY.match(key):
            parts.setdefault(_bare(found["module"]), {})[found["part"]] = stored
            continue
        name = _bare(key)
        if name not in base:
            unmatched.append(key)
        elif base[name].shape != stored.shape:
            raise Incompatible(
                f"{key} of {ref} has shape {list(stored.shape)}, the base {list(base[name].shape)}",
                "use the base that the adapter was trained on; a resized vocabulary must be merged on the resized base",
            )
        else:
            changes[name] = Change(replacement=stored)
    for module, tensors in parts.items():
        target = _target(module, base)
        if target is None:
            unmatched.append(f"{module} ({', '.join(f'lora_{part}' for part in tensors)})")
            continue
        low_rank = _low_rank(ref, module, tensors, config, base[target].shape)
        changes[target] = replace(changes.get(target, Change()), low_rank=low_rank)
    if unmatched:
        raise Incompatible(
            f"{len(unmatched)} of {len(header.tensors)} tensors of adapter {ref} match no tensor of the base, for instance "
            f"{unmatched[0]}; the base has names like {next(iter(base))}",
            "give the base that the adapter was trained on" + _tied_advice(unmatched[0]),
        )
    if not changes:
        raise Malformed(f"adapter {ref} holds no tensors", "train or save the adapter again")
    return Adapter(folder, config, changes, {file: header})


def base_of_adapters(refs: Iterable[str]) -> dict[str, StoredTensor]:
    """The tensors that adapters change, with the base's names and shapes as far as the adapters tell them; no bytes behind them.

    It stands for a base that is not here. Raises `Incompatible` when two adapters need different shapes of one tensor.
    """
    found: dict[str, StoredTensor] = {}
    for ref in refs:
        file = locate(ref) / "adapter_model.safetensors"
        shapes: dict[str, tuple[int, ...]] = {}
        factors: dict[str, dict[str, tuple[int, ...]]] = {}
        for key, info in read_header(file).tensors.items():
            if match := _KEY.match(key):
                factors.setdefault(_bare(match["module"]), {})[match["part"]] = info.shape
            else:
                shapes[_bare(key)] = info.shape
        for module, parts in factors.items():
            out, into = ("embedding_A", "embedding_B") if "embedding_A" in parts else ("B", "A")
            if out in parts and into in parts and len(parts[out]) == len(parts[into]) == 2:
                rows, columns = (parts[out][0], parts[into][1]) if out == "B" else (parts[out][1], parts[into][0])
                shapes[f"{module}.weight"] = (rows, columns)
        for name, shape in shapes.items():
            if name in found and found[name].shape != shape:
                raise Incompatible(
                    f"{name} is {list(found[name].shape)} for one adapter and {list(shape)} for {ref}",
                    "merge adapters of one base",
                )
            found[name] = StoredTensor(file, 0, "BF16", shape, math.prod(shape))
    return found


def _tied_advice(key: str) -> str:
    return "; if the base ties lm_head to its embeddings, save it untied first" if "lm_head" in key else ""


def _refuse_unsupported(ref: str, config: dict[str, Any]) -> None:
    kind = str(config.get("peft_type", "missing")).removeprefix("PeftType.")
    way_round = "merge it into its base with PEFT's merge_and_unload(), then merge the full models"
    if kind != "LORA":
        raise Unsupported(f"{ref} is a {kind} adapter; this engine folds LORA", way_round)
    for key, why in _REFUSED.items():
        if config.get(key):
            name = "DoRA" if key == "use_dora" else key
            raise Unsupported(f"{ref} uses {name}: {why}", way_round)
    start = str(config.get("init_lora_weights", "")).lower()
    if start.startswith(_BASE_CHANGING):
        raise Unsupported(
            f"{ref} was trained with init_lora_weights={config['init_lora_weights']!r}, which changes the base weights too",
            "save it as a plain LoRA: save_pretrained(..., path_initial_model_for_weight_conversion=...)",
        )


def _bare(key: str) -> str:
    """The base's own name of a stored key: without PEFT's prefix and wrapper names."""
    name = key.removeprefix("base_model.model.").removeprefix("base_model.")
    name = re.sub(r"\.modules_to_save(\.[^.]+)?(?=\.(weight|bias)$)", "", name)
    return name.replace(".base_layer.", ".").removesuffix(".base_layer")


def _target(module: str, base: dict[str, StoredTensor]) -> str | None:
    for name in (f"{module}.weight", module):
        if name in base:
            return name
    return None


def _low_rank(ref: str, module: str, tensors: dict[str, StoredTensor], config: dict[str, Any], shape: tuple[int, ...]) -> LowRank:
    embedding = "embedding_A" in tensors or "embedding_B" in tensors
    names = ("embedding_A", "embedding_B") if embedding else ("A", "B")
    if set(tensors) != set(names):
        raise Malformed(f"{module} of {ref} has {sorted(tensors)} instead of {list(names)}", "save the adapter again")
    a, b = (tensors[name] for name in names)
    if len(a.shape) != 2 or len(b.shape) != 2:
        raise Unsupported(
            f"{module} of {ref} adapts a convolution (A is {list(a.shape)})", "merge it with PEFT's merge_and_unload() first"
        )
    rank = a.shape[0]
    declared = _pattern(config.get("rank_pattern"), module, config.get("r"))
    if b.shape[1] != rank or (declared is not None and declared != rank):
        raise Malformed(
            f"{module} of {ref}: A is {list(a.shape)}, B is {list(b.shape)}, the config says r={declared}",
            "the adapter and its config do not belong together; save it again",
        )
    alpha = _pattern(config.get("alpha_pattern"), module, config.get("lora_alpha", rank))
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not abs(alpha) < _MAX_ALPHA or not rank:
        raise Malformed(
            f"{module} of {ref} has the scale alpha={alpha!r} over r={rank}, which is no number", "save the adapter again"
        )
    scale = float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)
    full, flipped = (b.shape[0], a.shape[1]), (a.shape[1], b.shape[0])
    if shape not in (full, flipped):
        raise Incompatible(
            f"{module} of {ref} makes an update of {list(full)}, the base's weight is {list(shape)}",
            "give the base that the adapter was trained on",
        )
    # PEFT corrects a wrong fan_in_fan_out by the layer's type; the shape tells the same, except when it is square.
    transposed = embedding or bool(config.get("fan_in_fan_out"))
    if full != flipped:
        transposed = shape == flipped
    return LowRank(a, b, rank, scale, transposed)


def _pattern(patterns: Any, module: str, default: Any) -> Any:
    """PEFT's rule: the first pattern that matches the end of the module's name, at a dot.

    The patterns are regular expressions of whoever made the adapter. One that repeats a group, or repeats often, can take for
    ever on a name that does not match; such are refused. Real ones are module names, with a `.*` now and then.
    """
    if not patterns:
        return default
    if not isinstance(patterns, dict):
        raise Malformed(f"rank_pattern or alpha_pattern is {str(patterns)[:80]}, not a table", "save the adapter again")
    for pattern, value in patterns.items():
        if len(pattern) > 500 or _REPEATED_GROUP.search(pattern) or len(_REPEAT.findall(pattern)) > _MAX_REPEATS:
            raise Unsupported(
                f"the pattern {pattern[:80]!r} in the adapter's config could take for ever to match", "name the modules plainly"
            )
        try:
            if re.match(rf"(.*\.)?({pattern})$", module):
                return value
        except re.error as error:
            raise Malformed(f"the pattern {pattern[:80]!r} in the adapter's config is none: {error}", "save it again") from error
    return default
