"""What an adapter does to one stored tensor, as data: which of its own tensors are combined, and how. No numpy.

`engine.updates` computes them. Every kind is a formula over the base's weight W (rows × columns as stored, or a stack of such
matrices) and the adapter's tensors, PEFT 0.21's own (`peft.tuners.*.layer`, `merge_and_unload`).
"""

from __future__ import annotations

from dataclasses import dataclass

from mcp_server.formats.tensors import StoredTensor


@dataclass(frozen=True, slots=True)
class Region:
    """Which part of an update goes where, when a tensor in memory is stored in pieces, or several are stored as one.

    Of the update (experts × rows × columns) take `expert`, then `rows` and `columns`, turn it over if `flip`, and put it at row
    `at` of the stored matrix. `None` is everything.
    """

    expert: int | None = None
    rows: tuple[int, int] | None = None
    columns: tuple[int, int] | None = None
    flip: bool = False
    at: int = 0


@dataclass(frozen=True, slots=True)
class LowRank:
    """ΔW = scale·B·A. `a` is (r, in), `b` is (out, r); `transposed` says that ΔW is (scale·B·A)ᵀ.

    With `experts` there is one ΔW for each: `a` is (experts·r, in) with the expert first, `b` is (out, r·experts) with the expert
    last, as PEFT stacks them. `magnitude` is DoRA's: W + ΔW is scaled to that norm, row by row (column by column if transposed).
    """

    a: StoredTensor
    b: StoredTensor
    rank: int
    scale: float
    transposed: bool
    experts: int = 1
    region: Region | None = None
    magnitude: StoredTensor | None = None

    @property
    def plain(self) -> bool:
        """Whether the whole update is (scale·B·A) or its transpose, on a matrix of its own."""
        return self.experts == 1 and self.region is None and self.magnitude is None and len(self.a.shape) == 2

    @property
    def parts(self) -> tuple[StoredTensor, ...]:
        return (self.a, self.b) if self.magnitude is None else (self.a, self.b, self.magnitude)


@dataclass(frozen=True, slots=True)
class Rows:
    """Trained rows replace the base's: row `indices[i]` becomes row i of `values`."""

    indices: tuple[int, ...]
    values: StoredTensor

    @property
    def parts(self) -> tuple[StoredTensor, ...]:
        return (self.values,)


@dataclass(frozen=True, slots=True)
class Scaled:
    """IA³: every row (or column) of the weight times a trained number; for a bias, every element."""

    vector: StoredTensor
    columns: bool

    @property
    def parts(self) -> tuple[StoredTensor, ...]:
        return (self.vector,)


@dataclass(frozen=True, slots=True)
class Product:
    """LoHa, ΔW = scale·(w1_a·w1_b)∘(w2_a·w2_b); LoKr, ΔW = scale·w1⊗w2, where each wᵢ may be a product of two.

    VeRA, ΔW = (λ_b∘B)·(λ_d∘A) with A and B shared by all layers and cut to size.
    """

    kind: str
    factors: dict[str, StoredTensor]
    scale: float

    @property
    def parts(self) -> tuple[StoredTensor, ...]:
        return tuple(self.factors.values())


Update = LowRank | Rows | Scaled | Product


@dataclass(frozen=True, slots=True)
class Change:
    """What an adapter does to one base tensor: replace it, then apply updates in this order."""

    replacement: StoredTensor | None = None
    updates: tuple[Update, ...] = ()

    @property
    def low_rank(self) -> LowRank | None:
        """The update, if it is one plain low-rank product and nothing else is updated."""
        factors = self.factors
        return factors if factors and factors.plain else None

    @property
    def factors(self) -> LowRank | None:
        """The update, if it is one low-rank product on a whole matrix or on every matrix of a whole stack, and nothing else."""
        first = self.updates[0] if len(self.updates) == 1 else None
        whole = isinstance(first, LowRank) and first.region is None and first.magnitude is None and len(first.a.shape) == 2
        return first if isinstance(first, LowRank) and whole else None
