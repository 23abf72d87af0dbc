"""How one tensor of a merge is made: its inputs, and a computed block of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from mcp_server.recompute.values import Value

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

Span = tuple[int, int]
SPARSE: Final = {
    "ties": ("magnitude", True), "dare_linear": ("random", False), "dare_ties": ("random", True),
    "breadcrumbs": ("outliers", False), "breadcrumbs_ties": ("outliers", True), "della": ("rank", True),
    "della_linear": ("rank", False),
}  # fmt: skip
"""Method → (how a delta is thinned, whether a sign is elected)."""
CLOSE: Final = 2.0**-18
"""Values this close, relatively, may change places when they are computed in float32."""


@dataclass(frozen=True)
class Operand:
    label: str
    value: Value
    settings: dict[str, float]


@dataclass(frozen=True)
class Made:
    """How one tensor of the output is made: the method's inputs without the base, and the base where the method has one."""

    name: str
    shape: tuple[int, ...]
    method: str
    operands: tuple[Operand, ...]
    base: Value | None
    shared: dict[str, Any]


@dataclass
class Block:
    """`terms`: Σ of the magnitudes that were added up. `moving`: the part of it that belongs to the change over the base.

    `otherwise`: results that are as right where rounding decides. `undecided`: results that coarser arithmetic may have led to.
    """

    expected: Array
    terms: Array
    moving: Array
    base: Array | None
    deltas: list[Array]
    otherwise: Callable[[], Iterator[Array]] | None = None
    undecided: Callable[[], Iterator[Array]] | None = None


def load(made: Made, span: Span) -> tuple[Array | None, list[Array], list[Array], Array]:
    """(base, values, deltas over the base, Σ of the magnitudes they were made from)."""
    import numpy as np

    base, terms = made.base.rows(span) if made.base is not None else (None, np.zeros(1))
    read = [operand.value.rows(span) for operand in made.operands]
    values = [value for value, _ in read]
    size = terms + sum((own for _, own in read), np.zeros(1))
    return base, values, [value if base is None else value - base for value in values], size


def share_of_second(weights: list[float]) -> float:
    """nuslerp's place between two sources; weights that cancel mean the middle."""
    total = sum(weights)
    return 0.5 if abs(total) < 1e-6 else weights[1] / total


def weights_of(made: Made) -> list[float]:
    return [operand.settings["weight"] for operand in made.operands]
