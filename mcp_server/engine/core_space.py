"""Methods on the small core of low-rank factors, without forming the full change: two ways to merge adapters into one.

core     Core Space. The factors of all sources are stacked, U spans [B₁ B₂ …] and V spans [A₁; A₂; …] (left and right singular
         vectors), and every source is exactly U·Mᵢ·Vᵀ with Mᵢ = Uᵀ·sᵢBᵢAᵢ·V, of Σr × Σr values. The method merges the Mᵢ as it
         would merge weights; the result has rank Σr, or the rank that is asked for, by an SVD of the core.
shared   Compress, then merge. U and V are cut to the `rank` directions that carry most of all sources together (the leading
         eigenvectors of Σ MᵢMᵢᵀ and Σ MᵢᵀMᵢ), and the method merges cores of rank × rank values: nothing is truncated after it.

Which elements TIES trims, or DARE drops, are elements of the core here: another result than on the weights. Relative errors are
against the method on the whole core.

Source: Panariello et al., Accurate and Efficient Low-Rank Model Merging in Core Space (arXiv 2509.17786); Compress then Merge:
From Multiple LoRAs into One Low-Rank Adapter (arXiv 2606.03723), whose subspaces are taken here as those of a two-sided (Tucker)
decomposition of the stacked cores.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from mcp_server.engine.adapter_plan import Module
from mcp_server.engine.blocks import Block
from mcp_server.engine.deltas import OpenTensor
from mcp_server.engine.methods import prepare
from mcp_server.engine.plan import MergePlan, TensorPlan
from mcp_server.engine.reader import Reader
from mcp_server.engine.thread_pool import ThreadPool, Workspace
from mcp_server.errors import Malformed
from mcp_server.formats.tensors import StoredTensor
from mcp_server.schemas.base import Space

Array = np.ndarray[Any, Any]


def merge_cores(
    module: Module, plan: MergePlan, reader: Reader, pool: ThreadPool, seed: int, space: Space
) -> tuple[Array, Array, tuple[float, float]]:
    """(A, B, (squared error, squared norm)) of the merged change, float32, as they are stored."""
    left, right, cores = _cores(module, reader)
    merged = _merged(module, plan, cores, reader, pool, seed)
    kept = module.rank
    if space == "shared":
        tall, flat = (_leading(each, kept) for each in (cores, [core.T for core in cores]))
        small = _merged(module, plan, [tall.T @ core @ flat for core in cores], reader, pool, seed)
        missing = merged - tall @ small @ flat.T
        error, energy = float((missing**2).sum()), float((merged**2).sum())
        left, right, merged = left @ tall, flat.T @ right, small
    else:
        error, energy = 0.0, float((merged**2).sum())
    first, values, second = np.linalg.svd(merged, full_matrices=False)
    error += float((values[kept:] ** 2).sum())
    root = np.sqrt(values[:kept])
    tall, flat = (left @ first[:, :kept]) * root, (root[:, None] * second[:kept]) @ right
    return flat.astype(np.float32), tall.astype(np.float32), (error, energy)


def _cores(module: Module, reader: Reader) -> tuple[Array, Array, list[Array]]:
    """(U, Vᵀ, the core of every source but the base), float64. A source that leaves the tensor alone has a core of zeros."""
    pairs: list[tuple[Array, Array] | None] = []
    for number, entry in enumerate(module.plan.inputs):
        if number == module.plan.base:
            continue
        if entry.factors is None:
            pairs.append(None)
            continue
        flat, tall = (reader.whole(part).astype(np.float64) for part in (entry.factors.a, entry.factors.b))
        if not (np.isfinite(flat).all() and np.isfinite(tall).all()):
            raise Malformed(
                f"{module.plan.name} of {entry.source} holds values that are not finite",
                "train or download that source again; no adapter can hold them",
            )
        pairs.append((flat, tall * entry.factors.scale))
    held = [pair for pair in pairs if pair is not None]
    left = np.linalg.svd(np.concatenate([tall for _, tall in held], axis=1), full_matrices=False)[0]
    right = np.linalg.svd(np.concatenate([flat for flat, _ in held], axis=0), full_matrices=False)[2]
    nothing = np.zeros((left.shape[1], right.shape[0]))
    return left, right, [nothing if pair is None else (left.T @ pair[1]) @ (pair[0] @ right.T) for pair in pairs]


def _leading(cores: list[Array], count: int) -> Array:
    """The directions that carry most of all cores: eigenvectors of the largest eigenvalues of Σ M·Mᵀ, as columns."""
    products = np.sum([core @ core.T for core in cores], axis=0)
    return np.linalg.eigh(products)[1][:, ::-1][:, :count]


def _merged(module: Module, plan: MergePlan, cores: list[Array], reader: Reader, pool: ThreadPool, seed: int) -> Array:
    """The recipe's method on cores as it works on weights, around a base of zeros."""
    tensor = _Cores(module.plan, reader, cores)
    merge_block = prepare(plan.recipe.method, tensor, pool, seed)
    out, workspace = np.empty(cores[0].shape, np.float32), pool.workspace()
    for block in tensor.blocks:
        reference, deltas = tensor.load_all(workspace, block)
        merge_block(workspace, block, reference, deltas, out.reshape(-1)[block.start : block.start + block.count])
    return out.astype(np.float64)


class _Cores(OpenTensor):
    """Arrays in memory in the place of a tensor's deltas."""

    def __init__(self, plan: TensorPlan, reader: Reader, cores: list[Array]) -> None:
        shape = cores[0].shape
        stored = StoredTensor(Path(), 0, "F32", shape, cores[0].size)
        inputs = tuple(replace(entry, stored=stored, updates=()) for entry in plan.inputs)
        reference = replace(inputs[0], source="shared base")
        super().__init__(replace(plan, shape=shape, inputs=inputs, reference=reference), reader)
        self._cores = [np.ascontiguousarray(core, np.float32).reshape(-1) for core in cores]

    def needs_reference(self, index: int) -> bool:  # noqa: ARG002 (the base is zero)
        return False

    def untouched(self, index: int) -> bool:
        return not self._cores[index].any()

    def load_reference(self, workspace: Workspace, block: Block) -> Array:
        zeros = workspace.take("reference", block.count)
        zeros[:] = 0
        return zeros

    def load_delta(self, index: int, workspace: Workspace, block: Block, reference: Array, out: Array) -> int:  # noqa: ARG002
        out[:] = self._cores[index][block.start : block.start + block.count]
        return 0
