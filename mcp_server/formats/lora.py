"""What a PEFT adapter does to its base: for each stored tensor of the base a replacement, updates, or both. Headers only.

The one reader of adapters: inspect, validate, estimate, engine, folding, evaluation and verify's origin check all open them here,
so what is refused is refused before anything runs, in the same words.

scale = alpha/r, or alpha/√r for rank-stabilised LoRA; r and alpha may differ per module (`rank_pattern`, `alpha_pattern`), and
keys that adapter_config.json lacks have PEFT's defaults. Conv1D layers and embeddings, which store (in, out), need (B·A)ᵀ; which
layer is a Conv1D says the model's class, not `fan_in_fan_out`, of which PEFT saves the last module's value.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mcp_server.errors import Incompatible, Malformed, Unsupported
from mcp_server.formats import adapter_names
from mcp_server.formats.adapter_file import Module, modules_of
from mcp_server.formats.adapter_folder import open_adapter_folder
from mcp_server.formats.adapter_kinds import MERGE_FIRST, other_update, refuse_unsupported
from mcp_server.formats.adapter_lora import low_rank, other_shape, token_indices
from mcp_server.formats.adapter_names import Wanted
from mcp_server.formats.adapter_patterns import Scales
from mcp_server.formats.adapter_vocabulary import check_rows, untie
from mcp_server.formats.class_facts import facts_of, is_conv1d
from mcp_server.formats.memory_names import Held, Names, Shaped, as_stored, expert_by_expert, in_memory
from mcp_server.formats.safetensors import Header
from mcp_server.formats.tensors import StoredTensor
from mcp_server.formats.tied import say_untied
from mcp_server.formats.ties import find_ties
from mcp_server.formats.updates import Change, LowRank, Region, Rows, Scaled, Update


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
            say_untied(new)
        if self.vocabulary is not None:
            if "vocab_size" in new:
                new["vocab_size"] = self.vocabulary
            if isinstance(new.get("text_config"), dict) and "vocab_size" in new["text_config"]:
                new["text_config"] = new["text_config"] | {"vocab_size": self.vocabulary}
        return new


def open_adapter(
    ref: str, base: Mapping[str, Shaped], config: Mapping[str, Any] | None = None, *, as_merged: bool = False
) -> Adapter:
    """Read an adapter and match every one of its tensors to tensors of `base`, whose config says how names and layers are meant.

    `as_merged` asks for PEFT's merge where it differs from PEFT running: a LoRA on a tied embedding then changes the head too.
    Raises `NotAModel`, `Malformed`, `Unsupported` or `Incompatible`: all that can be wrong with it, before a weight is read.
    """
    base_config = config or {}
    on_disk = open_adapter_folder(ref)
    own = on_disk.config
    refuse_unsupported(ref, own)
    modules, shared = modules_of(ref, on_disk.tensors)
    _refuse_left_out(ref, own, modules)
    ties = find_ties(base_config, base)
    shapes: dict[str, Shaped] = dict(base)
    for name, holder in ties.holders.items() if ties else ():
        shapes.setdefault(name, base[holder])
    tables = _tables(base_config, shapes, modules)
    wanted = [_wanted(module, own, base_config, modules) for module in modules]
    mapped = adapter_names.fit(wanted, tables)
    if isinstance(mapped, list):
        raise _no_match(ref, modules, wanted, tables, mapped, shapes)
    reading = _Reading(ref, own, base_config, shared)
    found = zip(modules, mapped.found, mapped.biases, mapped.names, strict=True)
    for module, held, bias, name in sorted(found, key=lambda entry: entry[0].kind != "saved"):
        reading.add(module, held, bias, name)
    changes = reading.changes
    if not changes:
        raise Malformed(f"adapter {ref} holds no tensors", "train or save the adapter again")
    notes = [f"the names of adapter {ref} fit its base {mapped.how}"] if mapped.how else []
    vocabulary = check_rows(ref, changes, shapes, ties)
    added, untied = untie(ref, own, changes, base, ties, notes, as_merged=reading.copies if as_merged else None)
    return Adapter(on_disk.folder, own, changes, on_disk.headers, added, untied, vocabulary, tuple(notes))


def _refuse_left_out(ref: str, own: Mapping[str, Any], modules: Sequence[Module]) -> None:
    """Raise `Malformed` for factors of layers that the config leaves out: PEFT ignores them without a word."""
    layers = own.get("layers_to_transform")
    chosen = [layers] if type(layers) is int else layers
    if not chosen or not isinstance(chosen, list):
        return
    given = own.get("layers_pattern")
    patterns = [given] if isinstance(given, str) and given else given or [r"[^.]*"]
    for module in modules:
        numbers = [re.match(rf".*\.{pattern}\.(\d+)\.", f"model.{module.stem}") for pattern in patterns]
        found = next((int(number[1]) for number in numbers if number), None)
        if module.kind == "module" and found is not None and found not in chosen:
            raise Malformed(
                f"adapter {ref} holds {module.stem}, and layers_to_transform {layers} of its config leaves layer {found} out, so "
                "PEFT would ignore it",
                "correct layers_to_transform in adapter_config.json, or save the adapter again",
            )


def _tables(config: Mapping[str, Any], base: Mapping[str, Shaped], modules: list[Module]) -> list[tuple[str, Names]]:
    memory = in_memory(config, base)
    wanted = [f"{module.stem}.weight" for module in modules]
    memory |= expert_by_expert(memory, wanted, config)
    stored = as_stored(base)
    stored |= expert_by_expert(stored, wanted, config)
    return [("by the names in memory, which transformers stores under others", memory), ("", stored)]


def _wanted(module: Module, own: dict[str, Any], config: Mapping[str, Any], modules: list[Module]) -> Wanted:
    targets = [f".{target}" for target in own.get("target_parameters") or []]
    wrapped = sum(1 for other in modules if other.kind == "module" and other.stem == module.stem)

    def names_of(names: Names, stem: str) -> list[str]:
        if module.kind == "saved":
            return [stem] if stem in names else []
        plain = [name for name in (f"{stem}.weight", stem, f"{stem}.in_proj_weight") if name in names]
        return plain or adapter_names.stacks(names, stem, targets, facts_of(config).stacks)

    def by_name(names: Names, stem: str) -> str | None:
        return next(iter(names_of(names, stem)), None)

    def by_shape(names: Names, stem: str) -> str | None:
        found = names_of(names, stem)
        if len(found) == wrapped > 1:  # PEFT nests the wrappers of one module's parameters: the first is the innermost
            found = [found[wrapped - 1 - module.depth]] if module.depth < wrapped else []
        fitting = [name for name in found if names[name].obstacle or module.shape_fits(names[name].shape)]
        return (fitting[0] if module.depth else fitting[-1]) if fitting else None

    return Wanted(module.stem, by_name, by_shape)


def _is_whole(held: Held) -> bool:
    """One stored tensor holds it and nothing else, as it is in memory."""
    return not held.obstacle and len(held.pieces) == 1 and held.pieces[0].region is None


class _Reading:
    """What the modules of one adapter do, gathered by the stored tensors that hold their weights."""

    def __init__(self, ref: str, own: dict[str, Any], config: Mapping[str, Any], shared: dict[str, StoredTensor]) -> None:
        self.ref, self.own, self.config, self.shared = ref, own, config, shared
        self.scales = Scales(own)
        self.changes: dict[str, Change] = {}
        self.copies: set[str] = set()
        """Tensors that the adapter holds whole only because PEFT copies the base's embeddings."""

    def add(self, module: Module, held: Held, bias: Held | None, name: str) -> None:
        ref, changes = self.ref, self.changes
        if held.obstacle:
            raise Unsupported(
                f"{module.stem} of {ref} is stored by the base in another arrangement ({held.obstacle})", MERGE_FIRST
            )
        whole = _is_whole(held)
        if module.kind == "saved":
            if not whole:
                raise Unsupported(
                    f"{ref} replaces {name}, which the base stores in several pieces or as a part of a larger tensor", MERGE_FIRST
                )
            stored = held.pieces[0].name
            self.copies |= {stored} if module.of_base else set()
            changes[stored] = Change(module.parts["saved"], changes[stored].updates if stored in changes else ())
            return
        update = self._update(module, held, name, whole=whole)
        scaled = bias if isinstance(update, Scaled) and not update.columns else None  # IA³ multiplies all that a layer puts out
        if not (whole or (isinstance(update, LowRank) and update.magnitude is None)) or not (scaled is None or _is_whole(scaled)):
            raise Unsupported(
                f"{ref} changes {name}, which the base stores in several pieces or as a part of a larger tensor", MERGE_FIRST
            )
        for piece in (*held.pieces, *(scaled.pieces if scaled else ())):
            part = _in_region(update, piece.region) if isinstance(update, LowRank) and piece.region else update
            before = changes.get(piece.name, Change())
            changes[piece.name] = Change(before.replacement, (*before.updates, part))

    def _update(self, module: Module, held: Held, name: str, *, whole: bool) -> Update:
        if "lora_A" in module.parts or "lora_B" in module.parts or "lora_embedding_A" in module.parts:
            before = self.changes.get(held.pieces[0].name)
            shape = before.replacement.shape if whole and before and before.replacement else held.shape
            return low_rank(self.ref, self.own, self.scales, self.config, module, name, shape)
        if module.kind == "tokens":
            return Rows(token_indices(self.ref, self.own, module), module.parts["tokens"])
        if is_conv1d(self.config, name.removesuffix(".weight")):
            raise Unsupported(
                f"{module.stem} of {self.ref} is a Conv1D, which this kind of adapter is not merged into", MERGE_FIRST
            )
        return other_update(self.ref, self.own, self.scales, module.stem, module.parts, held.shape, self.shared)


def _in_region(update: LowRank, region: Region) -> LowRank:
    return LowRank(update.a, update.b, update.rank, update.scale, update.transposed, update.experts, region, update.magnitude)


def _no_match(
    ref: str,
    modules: list[Module],
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


def _size_differs(ref: str, module: Module, shape: tuple[int, ...]) -> Incompatible:
    if module.kind != "module":
        stored = next(iter(module.parts.values())).shape
        return Incompatible(
            f"{module.stem} is {list(stored)} in {ref}, {list(shape)} in the base",
            "merge it on a base of that size: resize_token_embeddings() on the base, then save it",
        )
    a, b = module.parts["lora_A"], module.parts["lora_B"]
    return other_shape(ref, module.stem, (b.shape[0], *a.shape[1:]), shape)
