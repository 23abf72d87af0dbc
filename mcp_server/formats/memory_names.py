"""The names that a model's tensors have in memory, and where each is stored.

transformers 5 renames and fuses tensors when it loads them: towers move, experts that are stored one by one become one stack.
PEFT saves adapters under the names in memory. The conversions are transformers' own (`formats.class_facts`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Protocol

from mcp_server.formats.class_facts import facts_of, layerless
from mcp_server.formats.updates import Region


class Shaped(Protocol):
    @property
    def shape(self) -> tuple[int, ...]: ...


@dataclass(frozen=True, slots=True)
class Piece:
    """A stored tensor that holds (a part of) a tensor in memory."""

    name: str
    region: Region | None = None


@dataclass(frozen=True, slots=True)
class Held:
    """A tensor by one of its names: its shape under that name, and the stored tensors that it is made of.

    `obstacle` names a conversion that rearranges numbers in a way that no update can follow.
    """

    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]
    obstacle: str = ""


Names = dict[str, Held]


def as_stored(tensors: Mapping[str, Shaped]) -> Names:
    """The stored names themselves."""
    return {name: Held(tuple(tensor.shape), (Piece(name),)) for name, tensor in tensors.items()}


def in_memory(config: Mapping[str, Any], tensors: Mapping[str, Shaped]) -> Names:
    """The names that transformers gives the stored tensors of this config's class when it loads them."""
    facts = facts_of(config)
    rules = facts.rules
    renames, converters = [r for r in rules if not r["ops"]], [r for r in rules if r["ops"]]
    if not facts.known:
        return as_stored(tensors)
    names: Names = {}
    groups: dict[tuple[str, int], dict[int, list[str]]] = {}
    active: set[int] = set()
    for name in sorted(tensors, key=_natural):
        now = name
        for number, rule in enumerate(renames):
            now = _rename(now, rule, active, number)[0]
        for number, rule in enumerate(converters):
            renamed, source = _rename(now, rule, active, -1)
            if source is not None:
                renamed = facts.with_prefix(renamed)
                groups.setdefault((renamed, number), {}).setdefault(source, []).append(name)
                break
        else:
            names[facts.with_prefix(now)] = Held(tuple(tensors[name].shape), (Piece(name),))
    for (target, number), sources in groups.items():
        names |= _converted(target, converters[number], sources, tensors)
    return names


def _rename(name: str, rule: dict[str, Any], active: set[int], number: int) -> tuple[str, int | None]:
    """One rule on one name, as transformers' `rename_source_key` does it, and which of the rule's patterns matched."""
    prefix = ""
    if rule.get("scope") is not None:
        scope = f"{rule['scope']}." if rule["scope"] else ""
        longest = (f"{rule['base']}." if rule.get("base") else "") + scope
        prefix = longest if name.startswith(longest) else scope
        if not name.startswith(prefix):
            return name, None
    rest = name.removeprefix(prefix)
    found = _compiled(rule["regex"]).search(rest)
    if found is None:
        return name, None
    group = next(label for label, text in found.groupdict().items() if text is not None)
    source, first = int(group[1:]), found.re.groupindex[group]
    if rule["kind"] == "GroupWeightRename":
        if source == 0:
            active.add(number)
        elif number not in active:
            return name, None
        target = re.sub(r"\\(\d+)", lambda m: found.group(first + int(m.group(1))), rule["to"][source])
    else:
        target = rule["to"][0]
        if r"\1" in target:
            target = target.replace(
                r"\1", str(int(found.group(first + 1)) + rule["offset"]) if "offset" in rule else found.group(first + 1)
            )
    return prefix + rest.replace(found.group(0), target, 1), source


@cache
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern)


@dataclass(frozen=True, slots=True)
class _Part:
    """A stored tensor on its way through the operations: its matrix's size as it is now, and where it stands."""

    name: str
    rows: int
    columns: int
    expert: int | None = None
    row: int = 0
    column: int = 0
    flip: bool = False
    at: int = 0


def _converted(target: str, rule: dict[str, Any], sources: dict[int, list[str]], tensors: Mapping[str, Shaped]) -> Names:
    every = [name for names in sources.values() for name in names]
    ranks = {len(tensors[name].shape) for name in every}
    kinds = [kind for kind, _ in rule["ops"]]
    targets = [target.replace(rule["to"][0], to, 1) for to in rule["to"]]

    def obstacle(kind: str) -> Names:
        return dict.fromkeys(targets, Held((), tuple(map(Piece, every)), kind))

    if ranks == {1} and kinds == ["Chunk"] and len(every) == 1:
        return _chunks(targets, every[0], tensors[every[0]].shape)
    if len(ranks) != 1 or not ranks <= {2, 3}:
        return obstacle(" and ".join(kinds))
    if len(every) == 1 and kinds == ["Transpose"] and rule["ops"][0][1].get("check_dims"):
        # turned only if it is stored the other way round than the class has it: which way, the shape of an update tells
        return {target: Held(tuple(tensors[every[0]].shape), (Piece(every[0]),))}
    rank = ranks.pop()
    experts = tensors[every[0]].shape[0] if rank == 3 else None
    lists = {
        number: [_Part(name, tensors[name].shape[-2], tensors[name].shape[-1]) for name in names]
        for number, names in sorted(sources.items())
    }
    chunks = 1
    for kind, settings in rule["ops"]:
        axis = settings.get("dim", 0) - (rank - 2)
        if kind == "MergeModulelist" and settings.get("dim", 0) == 0 and rank == 2:
            experts, rank = max(map(len, lists.values())), 3
            lists = {n: [replace(part, expert=e) for e, part in enumerate(parts)] for n, parts in lists.items()}
        elif kind == "Concatenate" and axis in (0, 1):
            joined: list[_Part] = []
            offset = 0
            for parts in lists.values():
                joined += [replace(p, row=offset) if axis == 0 else replace(p, column=offset) for p in parts]
                offset += parts[0].rows if axis == 0 else parts[0].columns
            lists = {0: joined}
        elif (
            kind == "Transpose"
            and not settings.get("check_dims")
            and {settings["dim0"] % rank, settings["dim1"] % rank}
            == {
                rank - 2,
                rank - 1,
            }
        ):
            lists = {
                n: [replace(p, rows=p.columns, columns=p.rows, row=p.column, column=p.row, flip=not p.flip) for p in parts]
                for n, parts in lists.items()
            }
        elif kind == "Chunk" and axis == 0 and rank == 2 and len(every) == 1 and len(rule["to"]) > 1:
            chunks = len(targets)
        else:
            return obstacle(kind)
    parts = [part for parts in lists.values() for part in parts]
    rows, columns = max(p.row + p.rows for p in parts), max(p.column + p.columns for p in parts)
    if chunks > 1:
        return obstacle("Chunk") if parts[0].flip else _chunks(targets, parts[0].name, (rows, columns))
    shape = (rows, columns) if rank == 2 else (experts or 1, rows, columns)
    return {target: Held(shape, tuple(Piece(p.name, _region(p, rows, columns)) for p in parts))}


def _chunks(targets: list[str], stored: str, shape: tuple[int, ...]) -> Names:
    """A tensor that is cut into equal runs of rows."""
    size, rest = divmod(shape[0], len(targets))
    if rest:
        return dict.fromkeys(targets, Held((), (Piece(stored),), "Chunk"))
    return {to: Held((size, *shape[1:]), (Piece(stored, Region(at=i * size)),)) for i, to in enumerate(targets)}


def _region(part: _Part, rows: int, columns: int) -> Region | None:
    region = Region(
        part.expert,
        None if part.rows == rows else (part.row, part.row + part.rows),
        None if part.columns == columns else (part.column, part.column + part.columns),
        part.flip,
    )
    return None if region == Region() else region


def _natural(name: str) -> list[tuple[int, int, str]]:
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in name.split(".")]


def expert_by_expert(names: Names, wanted: Iterable[str], config: Mapping[str, Any]) -> Names:
    """Names of single experts' matrices (experts.3.up_proj.weight) for stacks that are stored fused, as `wanted` asks.

    The halves of a fused gate and up projection are those of transformers' own conversions, in their order.
    """
    found: Names = {}
    for name in wanted:
        match = re.fullmatch(r"(.+\.experts)\.(\d+)\.(gate_proj|up_proj|down_proj|w1|w2|w3)\.weight", name)
        if match is None or name in names:
            continue
        stem, expert, kind = match[1], int(match[2]), match[3]
        half = {"gate_proj": 0, "w1": 0, "up_proj": 1, "w3": 1}.get(kind)
        fused = names.get(f"{stem}.{'down_proj' if half is None else 'gate_up_proj'}")
        if fused is None or len(fused.shape) != 3 or expert >= fused.shape[0] or fused.pieces[0].region is not None:
            continue
        stored = fused.pieces[0].name
        transposed = any(layerless(stem).endswith(p) for p in facts_of(config).transposed_experts)
        rows, columns = fused.shape[1:]
        if transposed:
            continue
        size = rows if half is None else rows // 2
        start = expert * rows + (0 if half is None else half * size)
        found[name] = Held((size, columns), (Piece(stored, Region(at=start)),))
    return found
