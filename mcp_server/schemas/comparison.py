"""How the task vectors of sources relate: norms, cosines, sign disagreement. Facts for a plan, never a verdict."""

from __future__ import annotations

from pydantic import Field

from mcp_server.schemas.base import Frozen


class SourceChange(Frozen):
    """One source's change from the base. None where nothing was changed or the base is zero."""

    name: str
    norm: float = Field(description="Frobenius norm of the delta")
    relative_norm: float | None = Field(description="that norm over the base's, on the tensors that any source changes")
    changed: float | None = Field(description="share of the elements that differ from the base")


class PairRelation(Frozen):
    between: tuple[str, str]
    cosine: float | None
    sign_disagreement: float | None = Field(description="of the elements that both change, the share with opposite signs")
    norm_ratio: float | None = Field(description="the first's norm over the second's")
    top_overlap: float | None = Field(description="share of the largest fifth of changes that falls on the same elements")


class LayerRelation(PairRelation):
    layer: str


class Figures(Frozen):
    """Every source and every pair, over one tensor, one layer or the whole."""

    sources: list[SourceChange]
    pairs: list[PairRelation]


class Comparison(Figures):
    """The result of compare: the whole (the ten most related pairs), the ten layers that stand out, and where the rest lies."""

    layers: list[LayerRelation]
    sample: bool
    tensors: int
    path: str


class ComparisonDetails(Frozen):
    """comparison.json: everything that was measured."""

    base: str
    sources: dict[str, str] = Field(description="short name → the model that was compared")
    sample: bool
    overall: Figures
    layers: dict[str, Figures]
    tensors: dict[str, Figures]
