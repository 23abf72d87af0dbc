"""One source's version of one tensor: stored rows, with what an adapter does to them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mcp_server.formats.tensors import StoredTensor
from mcp_server.recompute.adapters import Adapter, CannotCompute, adapted_rows
from mcp_server.recompute.reading import read_rows, readable

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Value:
    """`name` is the tensor's name in its own checkpoint, which is how an adapter knows it."""

    stored: StoredTensor
    name: str
    adapter: Adapter | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return self.stored.shape

    @property
    def adapted(self) -> bool:
        return self.adapter is not None and (self.name in self.adapter.touched or bool(self.adapter.unknown))

    @property
    def foldings(self) -> int:
        """How often another tool rounds when it folds the adapter: after each update of the tensor, or of what is one with it."""
        if self.adapter is None or not self.adapted:
            return 0
        twins = [twin for twin in self.adapter.one_with.get(self.name, ()) if twin in self.adapter.parts]
        return max(1, len(twins) + (self.name in self.adapter.parts))

    def rows(self, span: tuple[int, int]) -> tuple[Array, Array]:
        """(values, Σ of the magnitudes that make them), float64, shape (rows, width)."""
        import numpy as np

        if not readable(self.stored.dtype):
            raise CannotCompute(f"{self.stored.dtype} values are not read here")
        rows = read_rows(self.stored, *span)
        if self.adapter is None:
            return rows, np.abs(rows)
        owned = {self.name, self.name.removesuffix("bias") + "weight"}
        if not self.adapter.unknown and not owned & self.adapter.touched:
            return rows, np.abs(rows)
        return adapted_rows(self.adapter, self.name, self.shape, rows, span, self.stored)


__all__ = ["CannotCompute", "Value"]
