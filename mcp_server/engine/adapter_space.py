"""Merging adapters into an adapter: megabytes and seconds, no full model written, usable on a quantised base.

Under linear and task_arithmetic the sum of low-rank updates is a low-rank update, exactly:
Σ cᵢsᵢ·BᵢAᵢ = [c₁s₁B₁ c₂s₂B₂ …]·[A₁; A₂; …], with the ranks added up and every scale folded into B. Other methods change single
elements, and the result has full rank: then the merged delta of each matrix is approximated by a truncated SVD at a chosen rank,
and the relative error is stated. The SVD reads the delta in row blocks, as everything here does (Halko, Martinsson, Tropp 2011:
random range finder with power iterations).
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mcp_server.core.errors import Malformed, Unsupported
from mcp_server.engine.coverage import require_coverage
from mcp_server.engine.deltas import OpenTensor
from mcp_server.engine.limits import PeakMeter, usable_cores
from mcp_server.engine.merging import prepare
from mcp_server.engine.papers import TOKENIZER_FILES, copy_files, sync_folder, write_json, write_record
from mcp_server.engine.plan import MergePlan, TensorPlan, make_plan
from mcp_server.engine.reader import Reader
from mcp_server.engine.recipe import parse_recipe
from mcp_server.engine.request import Report, Request, choose_seed
from mcp_server.engine.team import Team

Array = np.ndarray[Any, Any]

OVERSAMPLING, POWER_ITERATIONS = 8, 2
_WAY_ROUND = "use --output model"


@dataclass(frozen=True)
class Module:
    """One adapted matrix: its plan, the coefficient of each input's update, and the rank that the result gets."""

    plan: TensorPlan
    coefficients: tuple[float, ...]
    rank: int
    transposed: bool
    embedding: bool

    @property
    def name(self) -> str:
        return self.plan.name.removesuffix(".weight")

    def shapes(self) -> dict[str, tuple[int, int]]:
        rows, columns = self.plan.shape
        if self.transposed:
            rows, columns = columns, rows
        a, b = ("embedding_A", "embedding_B") if self.embedding else ("A.weight", "B.weight")
        stem = f"base_model.model.{self.name}.lora_"
        return {stem + a: (self.rank, columns), stem + b: (rows, self.rank)}


def merge_adapters(request: Request, report: Report) -> dict[str, Any]:
    """Write one adapter that stands for the recipe. Same result fields as a merge, plus `relative_error` for an SVD."""
    started = time.monotonic()
    recipe = parse_recipe(request.recipe)
    require_coverage(recipe)
    plan = make_plan(recipe)
    _check(plan)
    exact = recipe.method in ("linear", "task_arithmetic")
    if not exact and request.rank is None:
        raise Malformed(
            f"{recipe.method} does not keep updates low-rank, so an adapter needs a rank", "give --rank, for instance 64"
        )
    modules = [_module(plan, tensor, None if exact else request.rank) for tensor in plan.tensors if _adapted(tensor)]
    request.folder.mkdir(parents=True, exist_ok=True)
    seed, meter = choose_seed(request), PeakMeter()
    reader, team = Reader(), Team(request.threads or usable_cores())
    errors: list[tuple[float, float]] = []

    def tensors() -> Iterator[Array]:
        for number, module in enumerate(modules):
            if exact:
                yield from _concatenate(module, reader)
            else:
                a, b, error = _approximate(module, plan, reader, team, seed)
                errors.append(error)
                yield from (a, b)
            meter.sample()
            report("merge", number + 1, len(modules), "matrices")

    try:
        shapes = {name: shape for module in modules for name, shape in module.shapes().items()}
        size = _write(request.folder / "adapter_model.safetensors", shapes, tensors())
    finally:
        team.close()
        reader.close()
    write_json(request.folder / "adapter_config.json", _config(plan, modules))
    lost, whole = (sum(values) for values in zip(*errors, strict=True)) if errors else (0.0, 0.0)
    measured: dict[str, Any] = {
        "engine": "stream",
        "seed": seed,
        "tensors": len(shapes),
        "bytes": size,
        "landed": {},
        "rounding_loss": {},
        "nonfinite": {},
        "relative_error": None if exact else math.sqrt(max(lost, 0.0) / whole) if whole else 0.0,
        "warnings": list(plan.warnings),
        "resumed": False,
        "wall_seconds": time.monotonic() - started,
        "peak_anon_bytes": meter.sample(),
    }
    adapter = next(source.adapter for source in plan.sources.values() if source.adapter)
    copy_files(adapter.folder, request.folder, TOKENIZER_FILES)
    write_record(request, plan, measured, library="peft")
    sync_folder(request.folder)
    return measured


def _check(plan: MergePlan) -> None:
    """Only adapters of one base, and nothing but low-rank updates in them."""
    recipe = plan.recipe
    for ref in recipe.refs:
        if ref.adapter is None and ref != recipe.base:
            raise Unsupported(f"{ref} is a full model, so the result is no adapter", _WAY_ROUND)
    models = {ref.base_ref for ref in recipe.refs}
    if len(models) != 1 or (recipe.base and recipe.base.adapter):
        raise Unsupported(f"the sources stand on different bases: {sorted(models)}", _WAY_ROUND)
    if any(listed.layer_range is not None for group in recipe.groups for listed in group.sources):
        raise Unsupported("slices change the layers, and an adapter cannot", _WAY_ROUND)
    for ref, source in plan.sources.items():
        for name, change in source.adapter.changes.items() if source.adapter else ():
            if change.replacement is not None:
                raise Unsupported(f"{ref} replaces {name} whole (bias or modules_to_save)", _WAY_ROUND)
    if recipe.method == "linear":
        total = sum(values["weight"] for values in plan.tensors[0].per_source)
        if not plan.tensors[0].shared["normalize"] and abs(total - 1) > 1e-6:
            raise Unsupported(f"linear with weights that sum to {total:g} scales the base too, and an adapter cannot", _WAY_ROUND)
    if recipe.method in ("slerp", "passthrough") or (recipe.base is None and recipe.method != "linear"):
        raise Unsupported(f"{recipe.method} here interpolates whole models, not deltas from the base", _WAY_ROUND)


def _adapted(plan: TensorPlan) -> bool:
    return any(entry.low_rank for entry in plan.inputs)


def _module(plan: MergePlan, tensor: TensorPlan, rank: int | None) -> Module:
    updates = [entry.low_rank for entry in tensor.inputs if entry.low_rank]
    if len({update.transposed for update in updates}) != 1:
        raise Unsupported(f"{tensor.name} is adapted in two orientations", _WAY_ROUND)
    weights = [values.get("weight", 0.0) for values in tensor.per_source]
    strength, total = tensor.shared.get("lambda", 1.0), sum(weights)
    if tensor.shared.get("normalize") and abs(total) >= 1e-8:
        strength /= total
    added = sum(update.rank for update in updates)
    limit = min(tensor.shape)
    embedding = any(".lora_embedding_" in key for key in _keys(plan, tensor))
    coefficients = tuple(strength * weight for weight in weights)
    return Module(tensor, coefficients, min(rank, limit) if rank else added, updates[0].transposed, embedding)


def _keys(plan: MergePlan, tensor: TensorPlan) -> Iterator[str]:
    """The stored names of the updates of one tensor."""
    stem = tensor.name.removesuffix(".weight")
    for source in plan.sources.values():
        for header in source.adapter.headers.values() if source.adapter else ():
            yield from (key for key in header.tensors if f"{stem}.lora_" in key)


def _concatenate(module: Module, reader: Reader) -> tuple[Array, Array]:
    a, b = [], []
    for entry, coefficient in zip(module.plan.inputs, module.coefficients, strict=True):
        if entry.low_rank is not None:
            flat, tall = reader.whole(entry.low_rank.a), reader.whole(entry.low_rank.b)
            if not (np.isfinite(flat).all() and np.isfinite(tall).all()):
                raise Malformed(
                    f"{module.plan.name} of {entry.source} holds values that are not finite",
                    "train or download that source again",
                )
            a.append(flat)
            b.append(tall.astype(np.float64) * (coefficient * entry.low_rank.scale))
    return np.concatenate(a), np.concatenate(b, axis=1).astype(np.float32)


def _approximate(
    module: Module, plan: MergePlan, reader: Reader, team: Team, seed: int
) -> tuple[Array, Array, tuple[float, float]]:
    """(A, B, (squared error, squared norm)) of the merged delta's truncated SVD."""
    tensor = OpenTensor(module.plan, reader)
    merge_block = prepare(plan.recipe.method, tensor, team, seed)

    def rows() -> Iterator[tuple[slice, Array]]:
        """The merged delta, a block of rows at a time: the merge around a reference of zero."""
        workspace = team.workspace()
        for block in tensor.blocks:
            reference, deltas = tensor.load_all(workspace, block)
            out = workspace.take("out", block.count)
            reference[:] = 0
            merge_block(workspace, block, reference, deltas, out)
            yield slice(block.row, block.row + block.rows), out.reshape(block.rows, block.columns)

    height, width = module.plan.shape
    columns = min(module.rank + OVERSAMPLING, height, width)
    probe = np.random.default_rng(seed).standard_normal((width, columns), np.float32)
    basis = np.empty((height, columns), np.float32)
    for iteration in range(POWER_ITERATIONS + 1):
        for place, block_rows in rows():
            basis[place] = block_rows @ probe
        basis = np.linalg.qr(basis)[0]
        if iteration < POWER_ITERATIONS:
            probe = np.linalg.qr(sum(block_rows.T @ basis[place] for place, block_rows in rows()))[0]
    inner, energy = np.zeros((columns, width), np.float32), 0.0
    for place, block_rows in rows():
        inner += basis[place].T @ block_rows
        energy += float(np.einsum("ij,ij->", block_rows, block_rows, dtype=np.float64))
    left, values, right = np.linalg.svd(inner, full_matrices=False)
    kept = module.rank
    root = np.sqrt(values[:kept])
    tall, flat = (basis @ left[:, :kept]) * root, root[:, None] * right[:kept]
    error = (energy - float((values[:kept].astype(np.float64) ** 2).sum()), energy)
    return (tall.T.copy(), flat.T.copy(), error) if module.transposed else (flat, tall, error)


def _write(path: Path, shapes: dict[str, tuple[int, int]], tensors: Iterator[Array]) -> int:
    """One safetensors file in float32, a tensor at a time."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, shape in shapes.items():
        end = position + 4 * math.prod(shape)
        entries[name] = {"dtype": "F32", "shape": shape, "data_offsets": [position, end]}
        position = end
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for shape, tensor in zip(shapes.values(), tensors, strict=True):
            assert tensor.shape == shape, (tensor.shape, shape)
            file.write(np.ascontiguousarray(tensor, np.float32).data)
        file.flush()
        os.fsync(file.fileno())
    return path.stat().st_size


def _config(plan: MergePlan, modules: list[Module]) -> dict[str, Any]:
    """A PEFT config under which every module's scale is 1: alpha equals the rank, module by module."""
    first = next(source.adapter for source in plan.sources.values() if source.adapter)
    base = plan.recipe.refs[0]
    ranks = [module.rank for module in modules]
    usual = max(set(ranks), key=ranks.count)
    others = {module.name: module.rank for module in modules if module.rank != usual}
    return {
        "peft_type": "LORA",
        "task_type": first.config.get("task_type"),
        "base_model_name_or_path": base.base,
        "revision": base.revision,
        "r": usual,
        "lora_alpha": usual,
        "rank_pattern": others,
        "alpha_pattern": dict(others),
        "target_modules": _targets(plan, modules),
        "fan_in_fan_out": bool(first.config.get("fan_in_fan_out")),
        "bias": "none",
        "lora_dropout": 0.0,
        "use_rslora": False,
        "modules_to_save": None,
        "init_lora_weights": True,
        "inference_mode": True,
    }


def _targets(plan: MergePlan, modules: list[Module]) -> list[str]:
    """Short names where they mean exactly these modules, full names otherwise."""
    names = {module.name for module in modules}
    leaves = sorted({name.rpartition(".")[2] for name in names})
    every = {t.name.removesuffix(".weight") for t in plan.tensors if t.name.endswith(".weight")}
    meant = {name for name in every if name.rpartition(".")[2] in leaves}
    return leaves if meant == names else sorted(names)
