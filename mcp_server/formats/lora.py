"""What a PEFT adapter does to its base: for each stored tensor of the base a replacement, updates, or both. Headers only.

The one reader of adapters: inspect, validate, estimate, engine, folding, evaluation and verify's origin check all open them here,
so what is refused is refused before anything runs, in the same words.

scale = alpha/r, or alpha/√r for rank-stabilised LoRA; r and alpha may differ per module (`rank_pattern`, `alpha_pattern`), and
keys that adapter_config.json lacks have PEFT's defaults. Conv1D layers and embeddings, which store (in, out), need (B·A)ᵀ; which
layer is a Conv1D says the model's class, not `fan_in_fan_out`, of which PEFT saves the last module's value.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from mcp_server.errors import Incompatible, Malformed, Unsupported
from mcp_server.formats import adapter_names
from mcp_server.formats.adapter_folder import open_adapter_folder
from mcp_server.formats.adapter_kinds import MERGE_FIRST, by_pattern, other_update, refuse_unsupported
from mcp_server.formats.adapter_names import Wanted
from mcp_server.formats.adapter_vocabulary import check_rows, untie
from mcp_server.formats.checkpoint import require_float
from mcp_server.formats.memory_names import Held, Names, Shaped, as_stored, expert_by_expert, in_memory, is_conv1d
from mcp_server.formats.safetensors import Header
from mcp_server.formats.tensors import StoredTensor
from mcp_server.formats.ties import find_tie
from mcp_server.formats.updates import Change, LowRank, Region, Rows, Scaled, Update

_DEFAULT_RANK: Final = 8
_DEFAULT_ALPHA: Final = 8
_MAX_ALPHA: Final = 1e9
_PARTS: Final = r"lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector|hada_\w+|lokr_\w+|ia3_l|vera_lambda_[bd]"
KEY: Final = re.compile(rf"(?P<module>.+?)\.(?P<part>{_PARTS})(?:\.(?P<adapter>(?!weight$|bias$)[^.]+))?(?:\.weight)?$")
_TOKENS: Final = re.compile(r"(?P<module>.+?)(?:\.token_adapter)?\.trainable_tokens_delta(?:\.[^.]+)?$")
_SHARED: Final = re.compile(r"(?:.*\.)?vera_(?P<part>[AB])(?:\.[^.]+)?$")
_SAVED: Final = re.compile(r"\.modules_to_save(\.[^.]+)?(?=\.[^.]+$)")


@dataclass(frozen=True)
class Adapter:
    folder: Path
    config: dict[str, Any]
    changes: dict[str, Change]
    headers: dict[Path, Header]
    added: dict[str, str] = field(default_factory=dict)
    """Tensors that the merged model stores and the base does not: their name → the base's tensor that they start from."""
    untied: bool = False
    vocabulary: int | None = None
    notes: tuple[str, ...] = ()
    """What a user should know of how it was read: names that were mapped, a head that was untied."""

    def config_of(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The base's config as the adapted model needs it: head untied, vocabulary of the new size."""
        new = dict(config)
        if self.untied:
            new["tie_word_embeddings"] = False
            if isinstance(new.get("text_config"), dict) and "tie_word_embeddings" in new["text_config"]:
                new["text_config"] = new["text_config"] | {"tie_word_embeddings": False}
        if self.vocabulary is not None:
            if "vocab_size" in new:
                new["vocab_size"] = self.vocabulary
            if isinstance(new.get("text_config"), dict) and "vocab_size" in new["text_config"]:
                new["text_config"] = new["text_config"] | {"vocab_size": self.vocabulary}
        return new


@dataclass(slots=True)
class _Module:
    """The tensors of one adapted module, as stored, and the weight that they change."""

    stem: str
    depth: int = 0
    parts: dict[str, StoredTensor] = field(default_factory=dict)
    kind: str = "module"  # module, tokens, or saved

    def shape_fits(self, shape: tuple[int, ...]) -> bool:
        """Whether the adapter's tensors can belong to a weight of this shape."""
        if self.kind == "saved":
            stored = self.parts["saved"].shape
            return stored == shape or (len(shape) == 2 and len(stored) == 2 and stored[1] == shape[1])
        if self.kind == "tokens":
            return len(shape) == 2 and shape[1] == self.parts["tokens"].shape[-1]
        a, b = self.parts.get("lora_A"), self.parts.get("lora_B")
        if a is None or b is None or len(a.shape) < 2 or len(b.shape) < 2:
            return True
        if len(a.shape) > 2:
            return shape == (b.shape[0], *a.shape[1:])
        sides = {(b.shape[0], a.shape[1]), (a.shape[1], b.shape[0])}
        return tuple(shape[-2:]) in sides and (len(shape) == 2 or (len(shape) == 3 and a.shape[0] % shape[0] == 0))


def open_adapter(ref: str, base: Mapping[str, Shaped], config: Mapping[str, Any] | None = None) -> Adapter:
    """Read an adapter and match every one of its tensors to tensors of `base`, whose config says how names and layers are meant.

    Raises `NotAModel`, `Malformed`, `Unsupported` or `Incompatible`: all that can be wrong with it, before a weight is read.
    """
    base_config = config or {}
    on_disk = open_adapter_folder(ref)
    own = on_disk.config
    refuse_unsupported(ref, own)
    modules, shared = _modules(ref, on_disk.tensors)
    tie = find_tie(base_config, base)
    shapes: dict[str, Shaped] = dict(base)
    if tie is not None and tie.head not in shapes:
        shapes[tie.head] = base[tie.embedding]
    tables = _tables(base_config, shapes, modules)
    wanted = [_wanted(module, own) for module in modules]
    mapped = adapter_names.fit(wanted, tables)
    if isinstance(mapped, list):
        raise _no_match(ref, modules, wanted, tables, mapped, shapes)
    changes: dict[str, Change] = {}
    for module, held, name in sorted(
        zip(modules, mapped.found, mapped.names, strict=True), key=lambda entry: entry[0].kind != "saved"
    ):
        _add(ref, own, base_config, module, held, name, changes, shared)
    for name, change in list(changes.items()):
        bias = f"{name.removesuffix('weight')}bias"
        if bias in shapes and (scaled := [u for u in change.updates if isinstance(u, Scaled) and not u.columns]):
            before = changes.get(bias, Change())  # IA³ multiplies what the layer puts out, its bias with it
            changes[bias] = Change(before.replacement, (*before.updates, *scaled))
    if not changes:
        raise Malformed(f"adapter {ref} holds no tensors", "train or save the adapter again")
    notes = [f"the names of adapter {ref} fit its base {mapped.how}"] if mapped.how else []
    vocabulary = check_rows(ref, changes, shapes, tie)
    added, untied = untie(ref, own, changes, base, tie, notes)
    return Adapter(on_disk.folder, own, changes, on_disk.headers, added, untied, vocabulary, tuple(notes))


def _modules(ref: str, tensors: dict[str, StoredTensor]) -> tuple[list[_Module], dict[str, StoredTensor]]:
    """The adapter's tensors by the module that they belong to; and those that all modules share (VeRA's A and B)."""
    found: dict[tuple[str, int, str], _Module] = {}
    shared: dict[str, StoredTensor] = {}
    adapters: dict[str, None] = {}
    for key, stored in tensors.items():
        require_float(key, stored)
        plain = bare(key)
        if match := KEY.match(plain):
            adapters[match["adapter"] or ""] = None
            if len(adapters) > 1:
                names = ", ".join(repr(name) for name in adapters)
                raise Unsupported(
                    f"{ref} holds several adapters in one file ({names})",
                    "save each by itself: save_pretrained(..., selected_adapters=[NAME])",
                )
            depth = match["module"].count(".base_layer")
            stem = match["module"].replace(".base_layer", "")
            found.setdefault((stem, depth, "module"), _Module(stem, depth)).parts[match["part"]] = stored
        elif match := _SHARED.match(plain):
            shared[match["part"]] = stored
        elif match := _TOKENS.match(plain):
            found[match["module"], 0, "tokens"] = _Module(match["module"], 0, {"tokens": stored}, "tokens")
        else:
            name = saved_name(plain)
            found[name, 0, "saved"] = _Module(name, 0, {"saved": stored}, "saved")
    return list(found.values()), shared


def bare(key: str) -> str:
    """A stored key without PEFT's prefix and without the names that wrappers leave."""
    name = adapter_names.unwrap(key, also_module=key.startswith("module."))
    name = name.removeprefix("base_model.model.").removeprefix("base_model.")
    return name.removeprefix("module.")


def saved_name(name: str) -> str:
    """The base's name of a tensor that is stored whole."""
    return _SAVED.sub("", name).replace(".base_layer.", ".").removesuffix(".base_layer")


def _tables(config: Mapping[str, Any], base: Mapping[str, Shaped], modules: list[_Module]) -> list[tuple[str, Names]]:
    memory = in_memory(config, base)
    wanted = [f"{module.stem}.weight" for module in modules]
    memory |= expert_by_expert(memory, wanted, config)
    stored = as_stored(base)
    stored |= expert_by_expert(stored, wanted, config)
    return [("by the names in memory, which transformers stores under others", memory), ("", stored)]


def _wanted(module: _Module, config: dict[str, Any]) -> Wanted:
    targets = [str(target).rpartition(".")[2] for target in config.get("target_parameters") or []]

    def names_of(names: Names, stem: str) -> list[str]:
        if module.kind == "saved":
            return [stem] if stem in names else []
        plain = [name for name in (f"{stem}.weight", stem, f"{stem}.in_proj_weight") if name in names]
        return plain or [
            name for leaf in dict.fromkeys([*targets, "gate_up_proj", "down_proj"]) if (name := f"{stem}.{leaf}") in names
        ]

    def by_name(names: Names, stem: str) -> str | None:
        return next(iter(names_of(names, stem)), None)

    def by_shape(names: Names, stem: str) -> str | None:
        fitting = [name for name in names_of(names, stem) if names[name].obstacle or module.shape_fits(names[name].shape)]
        # PEFT nests the wrappers of one module's parameters: the first that the module defines is the innermost.
        ordered = sorted(fitting, key=lambda name: not name.endswith("gate_up_proj"))
        return (ordered[0] if module.depth else ordered[-1]) if ordered else None

    return Wanted(module.stem, by_name, by_shape)


def _add(
    ref: str,
    own: dict[str, Any],
    config: Mapping[str, Any],
    module: _Module,
    held: Held,
    name: str,
    changes: dict[str, Change],
    shared: dict[str, StoredTensor],
) -> None:
    """What one module of the adapter does, added to the changes of the stored tensors that hold its weight."""
    if held.obstacle:
        raise Unsupported(f"{module.stem} of {ref} is stored by the base in another arrangement ({held.obstacle})", MERGE_FIRST)
    whole = len(held.pieces) == 1 and held.pieces[0].region is None
    if module.kind == "saved":
        if not whole:
            raise Unsupported(f"{ref} replaces {name}, which the base stores in several pieces", MERGE_FIRST)
        stored = held.pieces[0].name
        changes[stored] = Change(module.parts["saved"], changes[stored].updates if stored in changes else ())
        return
    update: Update
    if "lora_A" in module.parts or "lora_B" in module.parts or "lora_embedding_A" in module.parts:
        before = changes.get(held.pieces[0].name)
        shape = before.replacement.shape if whole and before and before.replacement else held.shape
        update = _low_rank(ref, own, config, module, name, shape)
    elif module.kind == "tokens":
        update = Rows(_token_indices(ref, own, module), module.parts["tokens"])
    else:
        if is_conv1d(config, name.removesuffix(".weight")):
            raise Unsupported(f"{module.stem} of {ref} is a Conv1D, which this kind of adapter is not merged into", MERGE_FIRST)
        update = other_update(ref, own, module.stem, module.parts, held.shape, shared)
    if not whole and not (isinstance(update, LowRank) and update.magnitude is None):
        raise Unsupported(
            f"{ref} changes {name}, which the base stores in several pieces or as a part of a larger tensor", MERGE_FIRST
        )
    for piece in held.pieces:
        part = _in_region(update, piece.region) if isinstance(update, LowRank) and piece.region else update
        before = changes.get(piece.name, Change())
        changes[piece.name] = Change(before.replacement, (*before.updates, part))


def _in_region(update: LowRank, region: Region) -> LowRank:
    return LowRank(update.a, update.b, update.rank, update.scale, update.transposed, update.experts, region, update.magnitude)


def _low_rank(
    ref: str, own: dict[str, Any], config: Mapping[str, Any], module: _Module, name: str, shape: tuple[int, ...]
) -> LowRank:
    parts = dict(module.parts)
    magnitude = parts.pop("lora_magnitude_vector", None)
    embedding = "lora_embedding_A" in parts or "lora_embedding_B" in parts
    wanted = ("lora_embedding_A", "lora_embedding_B") if embedding else ("lora_A", "lora_B")
    if set(parts) != set(wanted):
        raise Malformed(f"{module.stem} of {ref} has {sorted(parts)} instead of {list(wanted)}", "save the adapter again")
    if bool(own.get("use_dora")) != (magnitude is not None):
        raise Malformed(
            f"{module.stem} of {ref} has {'a' if magnitude else 'no'} lora_magnitude_vector, its config says "
            f"use_dora: {str(bool(own.get('use_dora'))).lower()}",
            "the adapter and its config do not belong together; save it again",
        )
    a, b = (parts[part] for part in wanted)
    experts = shape[0] if len(shape) == 3 and len(a.shape) == 2 else 1
    if len(a.shape) < 2 or len(b.shape) < 2 or 0 in (*a.shape, *b.shape):
        raise Malformed(
            f"{module.stem} of {ref}: A is {list(a.shape)}, B is {list(b.shape)}: its weights were sharded when it was saved",
            "gather them first (FSDP summon_full_params, DeepSpeed GatheredParameters), then save it again",
        )
    rank = a.shape[0] // experts
    key = name.removesuffix(".weight")
    declared = by_pattern(own.get("rank_pattern"), key, module.stem, own.get("r", _DEFAULT_RANK))
    if len(b.shape) > 2 and b.shape[1] != rank:
        raise Unsupported(f"{module.stem} of {ref} adapts a grouped convolution (B is {list(b.shape)})", MERGE_FIRST)
    if b.shape[1] != rank * experts or declared != rank:
        raise Malformed(
            f"{module.stem} of {ref}: A is {list(a.shape)}, B is {list(b.shape)}, the config says r={declared}",
            "the adapter and its config do not belong together; save it again",
        )
    alpha = by_pattern(own.get("alpha_pattern"), key, module.stem, own.get("lora_alpha", _DEFAULT_ALPHA))
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not abs(alpha) < _MAX_ALPHA:
        raise Malformed(
            f"{module.stem} of {ref} has the scale alpha={alpha!r} over r={rank}, which is no number", "save the adapter again"
        )
    scale = float(alpha) / (math.sqrt(rank) if own.get("use_rslora") else rank)
    if len(a.shape) > 2:
        return LowRank(a, b, rank, scale, transposed=False, magnitude=magnitude)
    full, flipped = (b.shape[0], a.shape[1]), (a.shape[1], b.shape[0])
    if tuple(shape[-2:]) not in (full, flipped):
        raise _other_shape(ref, module.stem, full, shape)
    transposed = tuple(shape[-2:]) == flipped if full != flipped else embedding or _stores_in_out(own, config, name, experts)
    return LowRank(a, b, rank, scale, transposed, experts, magnitude=magnitude)


def _stores_in_out(own: dict[str, Any], config: Mapping[str, Any], name: str, experts: int) -> bool:
    """Whether a square weight is stored as (in, out): by the class of the layer; by PEFT's flag where the class is not known."""
    if experts > 1:
        return is_conv1d(config, name.rpartition(".")[0], experts=True) is True
    known = is_conv1d(config, name.removesuffix(".weight"))
    return bool(own.get("fan_in_fan_out")) if known is None else known


def _other_shape(ref: str, stem: str, update: tuple[int, ...], shape: tuple[int, ...]) -> Incompatible:
    return Incompatible(
        f"{stem} of {ref} makes an update of {list(update)}, the base's weight is {list(shape)}",
        "give a base of the adapter's size",
    )


def _token_indices(ref: str, own: dict[str, Any], module: _Module) -> tuple[int, ...]:
    listed = own.get("trainable_token_indices") or own.get("token_indices") or []
    if isinstance(listed, dict):
        listed = next((v for k, v in listed.items() if module.stem == k or module.stem.endswith(f".{k}")), [])
    rows = module.parts["tokens"].shape[0]
    if not isinstance(listed, list) or not all(isinstance(i, int) and i >= 0 for i in listed) or len(listed) != rows:
        raise Malformed(
            f"{module.stem} of {ref} has {rows} trained rows, its config names {len(listed)} tokens", "save the adapter again"
        )
    return tuple(listed)


def _no_match(
    ref: str,
    modules: list[_Module],
    wanted: list[Wanted],
    tables: list[tuple[str, Names]],
    fits: list[adapter_names.Mapping],
    base: Mapping[str, Shaped],
) -> Incompatible:
    if fits:
        ways = " or ".join(fit.how for fit in fits[:3])
        return Incompatible(
            f"the names of adapter {ref} fit the base in {len(fits)} ways: {ways}",
            "rename the keys of adapter_model.safetensors to the base's own names",
        )
    missing, prefix = adapter_names.nearest(wanted, tables)
    if not missing:
        for _, names in tables:
            for module, entry in zip(modules, wanted, strict=True):
                renamed = prefix(entry.stem)
                name = entry.by_name(names, renamed) or entry.by_name(names, entry.stem)
                if name is not None and entry.by_shape(names, renamed) is None and entry.by_shape(names, entry.stem) is None:
                    return _size_differs(ref, module, names[name].shape)
    first = (missing or wanted)[0].stem
    hint = f"; with the prefix {prefix.new}. the others fit" if prefix.new and len(missing) < len(wanted) else ""
    return Incompatible(
        f"{len(missing)} of {len(wanted)} modules of adapter {ref} are not in the base, for instance {first}; "
        f"the base has names like {next(iter(base))}{hint}",
        "give the base that has these modules, or rename the adapter's keys to the base's names",
    )


def _size_differs(ref: str, module: _Module, shape: tuple[int, ...]) -> Incompatible:
    if module.kind != "module":
        stored = next(iter(module.parts.values())).shape
        return Incompatible(
            f"{module.stem} is {list(stored)} in {ref}, {list(shape)} in the base",
            "merge it on a base of that size: resize_token_embeddings() on the base, then save it",
        )
    a, b = module.parts["lora_A"], module.parts["lora_B"]
    return _other_shape(ref, module.stem, (b.shape[0], *a.shape[1:]), shape)
