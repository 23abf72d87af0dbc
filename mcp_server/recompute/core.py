"""What a method makes of the core of stacked factors (the option `space`), computed again in float64 from the adapters.

U spans the sources' B, V their A (singular vectors of the stacked factors); each source is U·M·Vᵀ exactly, the method's
definition is applied to the M, and the change is U·M'·Vᵀ. An output of a chosen rank is an approximation of that, whose error is
recorded.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mcp_server.formats.tensors import StoredTensor
from mcp_server.recompute.adapters import CannotCompute, is_turned, scale_of
from mcp_server.recompute.inputs import Block, Made, Operand, Span
from mcp_server.recompute.methods import prepare
from mcp_server.recompute.reading import read_rows
from mcp_server.recompute.selective import Compute
from mcp_server.recompute.values import Value

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class _Held(Value):
    """An array in memory in the place of a stored tensor."""

    held: Any = None

    @property
    def adapted(self) -> bool:
        return False

    def rows(self, span: Span) -> tuple[Array, Array]:
        part = self.held[span[0] : span[1]]
        return part, abs(part)


def _hold(array: Array, name: str) -> _Held:
    return _Held(StoredTensor(Path(), 0, "F64", array.shape, array.size), name, None, array)


def prepare_core(made: Made, seed: int | None, close: float) -> Compute:
    """How to compute blocks of a tensor whose sources were merged on their core. Raises `CannotCompute`."""
    import numpy as np

    pairs = [_factors(operand.value, made.shape) for operand in made.operands]
    held = [pair for pair in pairs if pair is not None]
    if not held:
        raise CannotCompute("no source has factors here")
    turned = held[0][2]
    left = np.linalg.svd(np.concatenate([b for _, b, _ in held], axis=1), full_matrices=False)[0]
    right = np.linalg.svd(np.concatenate([a for a, _, _ in held], axis=0), full_matrices=False)[2]
    nothing = np.zeros((left.shape[1], len(right)))
    cores = [nothing if pair is None else left.T @ pair[1] @ pair[0] @ right.T for pair in pairs]
    operands = tuple(Operand(o.label, _hold(c, o.value.name), o.settings) for o, c in zip(made.operands, cores, strict=True))
    base = _hold(nothing, made.name) if made.base is not None else None
    merged = prepare(Made(made.name, nothing.shape, made.method, operands, base, made.shared), seed, close)((0, len(nothing)))
    changes = [_dense(left, core, right, turned=turned) for core in (merged.expected, *cores)]
    stored = (made.base or made.operands[0].value).stored

    def block(span: Span) -> Block:
        own = read_rows(stored, *span)
        change, *each = (whole[span[0] : span[1]] for whole in changes)
        return Block(own + change, np.abs(own) + np.abs(change), np.abs(change), own, list(each))

    return block


def _dense(left: Array, core: Array, right: Array, *, turned: bool) -> Array:
    whole: Array = left @ core @ right
    return whole.T if turned else whole


def _factors(value: Value, shape: tuple[int, ...]) -> tuple[Array, Array, bool] | None:
    """(A, scale·B, whether the weight lies as (in, out)) of a source, float64; None where it leaves the tensor alone."""
    adapter = value.adapter
    parts = adapter.parts.get(value.name) if adapter is not None else None
    if adapter is None or parts is None:
        if adapter is None or value.name in adapter.touched:
            raise CannotCompute("a source is not a plain LoRA of this tensor")
        return None
    kind = "embedding_" if "lora_embedding_A" in parts.stored else ""
    if {f"lora_{kind}A", f"lora_{kind}B"} != set(parts.stored) or len(shape) != 2:
        raise CannotCompute("a source is not a plain LoRA of this tensor")
    a, b = (read_rows(parts.stored[f"lora_{kind}{letter}"], 0, parts.stored[f"lora_{kind}{letter}"].shape[0]) for letter in "AB")
    scale = scale_of(adapter, parts, parts.stored[f"lora_{kind}A"].shape[0])
    return a, scale * b, is_turned(adapter, parts, shape, embedding=bool(kind))
