"""LoRA on stacks of experts (PEFT's target_parameters): which stored tensors its factors change, and by how much, in float64.

A stack (E, out, in), of gpt-oss and Llama 4 (E, in, out), has A of shape (r·E, in) and B of shape (out, r·E). Expert e is changed
by s·B[:, :, e]·A[e], with A read as (E, r, in) and B as (out, r, E). Wrappers of several parameters of one module are nested, the
first that the module defines innermost. A base may store the experts of the stack one by one; gate then precedes up.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from mcp_server.formats.tensors import StoredTensor

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

_ORDER: Final = ("gate_up_proj", "down_proj")
_TURNED_KINDS: Final = frozenset({"gpt_oss", "llama4", "llama4_text"})
_ONE_BY_ONE: Final = {
    "gate_up_proj": (("gate_proj", "up_proj"), ("w1", "w3")), "down_proj": (("down_proj",), ("w2",)),
}  # fmt: skip
"""Stack → the names that one expert's matrices may have instead, in the order of the stack's rows."""


@dataclass(frozen=True)
class Place:
    """Which part of the factors changes a tensor: all `experts`, or the rows `first` to `last` of one expert's update."""

    experts: int
    expert: int | None = None
    first: int = 0
    last: int | None = None


def places(
    module: str,
    depth: int,
    wrapped: int,
    factors: tuple[StoredTensor, StoredTensor],
    targets: list[str],
    base: dict[str, StoredTensor],
    nearest: Callable[[str], str | None],
) -> tuple[str, dict[str, Place]] | None:
    """(the parameter, tensor of the base → its place in the factors); None where no parameter fits, or more than one does.

    `depth`: how many wrappers are around this one, of `wrapped` on the module.
    """
    leaves = list(dict.fromkeys(target.rpartition(".")[2] for target in targets))
    leaves.sort(key=lambda leaf: _ORDER.index(leaf) if leaf in _ORDER else len(_ORDER))
    found = {leaf: held for leaf in leaves if (held := _of(f"{module}.{leaf}", leaf, base, nearest))}
    fitting = [leaf for leaf, held in found.items() if _fits(held, factors, base)]
    if len(fitting) > 1 and len(found) == wrapped:
        inner_first = list(found)
        fitting = [leaf for leaf in fitting if leaf == inner_first[depth]]
    return (f"{module}.{fitting[0]}", found[fitting[0]]) if len(fitting) == 1 else None


def _of(name: str, leaf: str, base: dict[str, StoredTensor], nearest: Callable[[str], str | None]) -> dict[str, Place]:
    """The tensor of a stack, or those of its experts."""
    if (whole := nearest(name)) is not None:
        shape = base[whole].shape
        return {whole: Place(shape[0] if len(shape) == 3 else 1)} if len(shape) in (2, 3) else {}
    stem = name.rpartition(".")[0]
    for names in _ONE_BY_ONE.get(leaf, ()):
        start = nearest(f"{stem}.0.{names[0]}.weight")
        if start is None:
            continue
        front = start.removesuffix(f"0.{names[0]}.weight")
        count = 0
        while f"{front}{count}.{names[0]}.weight" in base:
            count += 1
        found = {}
        for expert in range(count):
            row = 0
            for part in names:
                own = f"{front}{expert}.{part}.weight"
                if own not in base or len(base[own].shape) != 2:
                    return {}
                found[own] = Place(count, expert, row, row + base[own].shape[0])
                row += base[own].shape[0]
        return found
    return {}


def _fits(held: dict[str, Place], factors: tuple[StoredTensor, StoredTensor], base: dict[str, StoredTensor]) -> bool:
    a, b = factors
    if len(a.shape) != 2 or len(b.shape) != 2:
        return False
    experts = next(iter(held.values())).experts
    if not experts or a.shape[0] % experts or a.shape[0] != b.shape[1]:
        return False
    if any(place.expert is not None for place in held.values()):
        rows = sum(base[name].shape[0] for name, place in held.items() if place.expert == 0)
        return (rows, next(base[name].shape[1] for name in held)) == (b.shape[0], a.shape[1])
    return set(base[next(iter(held))].shape[-2:]) == {b.shape[0], a.shape[1]}


def update(
    place: Place, a: Array, b: Array, scale: float, shape: tuple[int, ...], span: tuple[int, int], model_type: str
) -> tuple[Array, Array] | None:
    """Rows `span` of the update of a stack (a row is an expert) or of one expert's matrix, and of the magnitudes that make it.

    None where a square matrix does not tell which way it lies.
    """
    import numpy as np

    count = place.experts
    rank = a.shape[0] // count
    flat, tall = a.reshape(count, rank, -1), b.reshape(b.shape[0], rank, count)
    if place.expert is not None:
        left, right = tall[place.first : place.last, :, place.expert][span[0] : span[1]], flat[place.expert]
        return scale * left @ right, abs(scale) * np.abs(left) @ np.abs(right)
    straight = shape[-2:] == (b.shape[0], a.shape[1])
    if straight and b.shape[0] == a.shape[1]:
        straight = model_type not in _TURNED_KINDS
        if model_type == "":
            return None
    deltas, sizes = [], []
    for expert in range(*span):
        left, right = tall[:, :, expert], flat[expert]
        delta, size = scale * left @ right, abs(scale) * np.abs(left) @ np.abs(right)
        deltas.append((delta if straight else delta.T).ravel())
        sizes.append((size if straight else size.T).ravel())
    return np.stack(deltas), np.stack(sizes)
