"""Which tensors of a base the names of an adapter mean, when they are not spelt alike.

Wrappers leave their names in keys (torch.compile, FSDP, activation checkpointing, DataParallel); transformers renames on loading;
a text adapter lacks the prefix that a multimodal model puts before its language model; hub checkpoints lack the prefix of their
class. One change of prefix that fits every key is taken and told; with none, or more than one, nothing is guessed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from mcp_server.formats.memory_names import Held, Names
from mcp_server.formats.tensor_names import WRAPPERS

MOST_CANDIDATES: Final = 64
_DEFINED: Final = ("gate_up_proj", "gate_proj", "w1", "up_proj", "w3", "down_proj", "w2")
"""The order in which modules of experts define their matrices, where the class is not known."""

Find = Callable[[Names, str], str | None]
"""The full tensor name that a key's stem means in a table of names, or None. It looks at shapes, so that a likely name of another
size is no match."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A name in an adapter and how to find what it changes: by name alone, and by name and shape."""

    stem: str
    by_name: Find
    by_shape: Find


@dataclass(frozen=True, slots=True)
class Prefix:
    """Names that begin with `old` begin with `new` instead; the others stay."""

    old: str = ""
    new: str = ""

    def __call__(self, name: str) -> str:
        if not self.old:
            return f"{self.new}.{name}" if self.new else name
        if name == self.old or name.startswith(self.old + "."):
            rest = name[len(self.old) + 1 :]
            return f"{self.new}.{rest}" if self.new and rest else (self.new or rest)
        return name

    def __str__(self) -> str:
        if not self.old:
            return f"with {self.new}. in front"
        return f"without {self.old}. in front" if not self.new else f"with {self.new}. for {self.old}."


@dataclass(frozen=True, slots=True)
class Mapping:
    """Where every wanted name was found, with the bias beside it, and what had to be changed to find it ("" when nothing)."""

    found: tuple[Held, ...]
    biases: tuple[Held | None, ...]
    names: tuple[str, ...]
    how: str


def unwrap(name: str, *, also_module: bool) -> str:
    """Without the names that wrappers leave, in front or inside."""
    parts = [part for part in name.split(".") if f"{part}." not in WRAPPERS and not (also_module and part == "module")]
    return ".".join(parts)


def fit(wanted: Sequence[Wanted], tables: Sequence[tuple[str, Names]]) -> Mapping | list[Mapping]:
    """The one mapping under which every wanted name is there, in its size; else all that fit (none, or several)."""
    for label, names in tables:
        if (found := _under(wanted, names, Prefix(), label, exact=True)) is not None:
            return found
    fits: list[Mapping] = []
    for label, names in tables:
        for prefix in _candidates(wanted, names):
            found = _under(wanted, names, prefix, label, exact=True)
            if found is not None and all(found.found != other.found for other in fits):
                fits.append(found)
    return fits[0] if len(fits) == 1 else fits


def nearest(wanted: Sequence[Wanted], tables: Sequence[tuple[str, Names]]) -> tuple[list[Wanted], Prefix]:
    """The wanted names that are not there under the prefix that finds most of them, looking at names only."""
    best: tuple[list[Wanted], Prefix] = (list(wanted), Prefix())
    for _, names in tables:
        for prefix in (Prefix(), *_candidates(wanted, names)):
            missing = [w for w in wanted if _find(w, names, prefix, exact=False) is None]
            if len(missing) < len(best[0]):
                best = (missing, prefix)
    return best


def stacks(names: Names, stem: str, targets: Sequence[str], orders: Sequence[Sequence[str]]) -> list[str]:
    """The stacks of a module's matrices that an adapter changes, in the order in which the module defines them.

    `targets` are the ends of their names by the adapter's config, `orders` the orders that the model's class has.
    """
    ends = dict.fromkeys(target.rpartition(".")[2] for target in targets)
    chosen = [leaf for leaf in ends if f"{stem}.{leaf}" in names and any(f".{stem}.{leaf}".endswith(t) for t in targets)]
    if not chosen:
        chosen = [leaf for leaf in ("gate_up_proj", "down_proj") if f"{stem}.{leaf}" in names]
    order = next((list(every) for every in orders if set(chosen) <= set(every)), list(_DEFINED))
    return [f"{stem}.{leaf}" for leaf in sorted(chosen, key=lambda leaf: order.index(leaf) if leaf in order else len(order))]


def _under(wanted: Sequence[Wanted], names: Names, prefix: Prefix, label: str, *, exact: bool) -> Mapping | None:
    found = []
    for entry in wanted:
        name = _find(entry, names, prefix, exact=exact)
        if name is None:
            return None
        found.append(name)
    how = [str(prefix)] if prefix != Prefix() else []
    if label and any(names[name].pieces[0].name != name for name in found):
        how.append(label)
    biases = (names.get(f"{name.removesuffix('weight')}bias") for name in found)
    return Mapping(tuple(names[name] for name in found), tuple(biases), tuple(found), " and ".join(how))


def _find(entry: Wanted, names: Names, prefix: Prefix, *, exact: bool) -> str | None:
    find = entry.by_shape if exact else entry.by_name
    renamed = prefix(entry.stem)
    return find(names, renamed) or (find(names, entry.stem) if renamed != entry.stem else None)


def _candidates(wanted: Sequence[Wanted], names: Names) -> list[Prefix]:
    """Changes of prefix under which at least one wanted name is there: from the first name of each stack."""
    found: dict[Prefix, None] = {}
    for stem in _samples(wanted):
        parts = stem.split(".")
        tail = _tail(parts)
        for name in names:
            other = name.split(".")
            for end in range(len(other), max(len(other) - 2, 0), -1):  # with and without the last part, `weight`
                stop = end
                here = len(parts)
                while here and stop and parts[here - 1] == other[stop - 1]:
                    here, stop = here - 1, stop - 1
                if len(parts) - here >= tail:
                    found[Prefix(".".join(parts[:here]), ".".join(other[:stop]))] = None
                    break
            if len(found) > MOST_CANDIDATES:
                return list(found)
    return [prefix for prefix in found if prefix != Prefix()]


def _samples(wanted: Sequence[Wanted]) -> Iterator[str]:
    """One name for each beginning before a layer's number."""
    seen = set()
    for entry in wanted:
        parts = entry.stem.split(".")
        head = tuple(parts[: len(parts) - _tail(parts)])
        if head not in seen:
            seen.add(head)
            yield entry.stem


def _tail(parts: list[str]) -> int:
    """How many parts from the end must agree: from the name of the stack of layers on, or the last two."""
    for number, part in enumerate(parts):
        if part.isdigit():
            return len(parts) - max(number - 1, 0)
    return min(2, len(parts)) if len(parts) > 1 else 1
