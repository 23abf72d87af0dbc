"""Merging adapters into an adapter: megabytes and seconds, no full model written, the base quantised, elsewhere, or plain.

Under linear and task_arithmetic the sum of low-rank updates is a low-rank update, exactly:
Σ cᵢsᵢ·BᵢAᵢ = [c₁s₁B₁ c₂s₂B₂ …]·[A₁; A₂; …], with the ranks added up and every scale folded into B. Other methods change single
elements, and the result has full rank: then the merged delta of each matrix is approximated by a truncated SVD at a chosen rank,
and the relative error is stated; or the method works on the small core of the factors instead (`core_space`). The SVD reads the
delta in row blocks, as everything here does (Halko, Martinsson, Tropp 2011: random range finder with power iterations).
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np

from mcp_server.engine.adapter_plan import (
    OVERSAMPLING,
    POWER_ITERATIONS,
    WHOLE,
    AdapterPlan,
    Module,
    Saved,
    kind_of,
    plan_adapter,
)
from mcp_server.engine.blocks import Block
from mcp_server.engine.codecs import encode
from mcp_server.engine.core_space import merge_cores
from mcp_server.engine.deltas import OpenTensor
from mcp_server.engine.limits import PeakMeter, give_back_freed_memory, usable_cores
from mcp_server.engine.metadata import copy_files, sync_folder, write_json, write_record
from mcp_server.engine.methods import MergeBlock, prepare
from mcp_server.engine.plan import MergePlan, TensorPlan
from mcp_server.engine.reader import Reader
from mcp_server.engine.request import Report, Request, choose_seed
from mcp_server.engine.thread_pool import ThreadPool
from mcp_server.errors import Malformed
from mcp_server.formats.companions import tokenizer_companions
from mcp_server.formats.identity import architecture_name
from mcp_server.formats.lineage import name_of_base
from mcp_server.formats.tensors import ITEM_BYTES, STORED

Array = np.ndarray[Any, Any]
ROUTERS: Final = (".gate", ".router")
NO_MODULES = "dummy-target-modules"
"""`peft.utils.constants.DUMMY_TARGET_MODULES`, without which PEFT refuses a config that names no module."""


def merge_adapters(request: Request, report: Report) -> dict[str, Any]:
    """Write one adapter that stands for the recipe. Same result fields as a merge, plus `relative_error` for an SVD."""
    started = time.monotonic()
    planned = plan_adapter(request.recipe, request.rank, request.whole, request.space)
    plan, modules, exact = planned.merge, planned.modules, planned.exact
    request.folder.mkdir(parents=True, exist_ok=True)
    seed, meter = choose_seed(request), PeakMeter()
    give_back_freed_memory()
    reader, pool = Reader(), ThreadPool(request.threads or usable_cores())
    errors: dict[str, tuple[float, float]] = {}

    def tensors() -> Iterator[Array]:
        for number, module in enumerate(modules):
            if exact:
                yield from _concatenate(module, reader)
            else:
                if planned.space == "weights":
                    a, b, error = _approximate(module, plan, reader, pool, seed)
                else:
                    a, b, error = merge_cores(module, plan, reader, pool, seed, planned.space)
                errors[module.plan.name] = error
                yield from (a, b)
            report("merge", number + 1, len(modules), "matrices")
        for whole in planned.saved:
            yield from _whole(whole, reader, pool, seed)
        for tensor in planned.left_out:
            energy = _energy(tensor, plan, reader, pool, seed)
            if energy:
                errors[tensor.name] = (energy, energy)

    try:
        shapes = planned.shapes()
        with meter.watching():
            size = _write(request.folder / "adapter_model.safetensors", shapes, planned.dtype, tensors())
    finally:
        pool.close()
        reader.close()
    write_json(request.folder / "adapter_config.json", _config(planned, request.folder))
    lost, whole = (sum(values) for values in zip(*errors.values(), strict=True)) if errors else (0.0, 0.0)
    overall = None if exact else _relative(lost, whole)
    left_out = [tensor for tensor in planned.left_out if tensor.name in errors]
    if overall is not None:
        _write_errors(request, errors, overall, [tensor.name for tensor in left_out])
    measured: dict[str, Any] = {
        "engine": "stream",
        "seed": seed,
        "tensors": len(shapes),
        "bytes": size,
        "landed": {},
        "rounding_loss": {},
        "nonfinite": {},
        "relative_error": overall,
        "warnings": [*plan.warnings, *_left_out_warning(left_out), *_router_warning(planned)],
        "resumed": False,
        "wall_seconds": time.monotonic() - started,
        "peak_anon_bytes": meter.sample(),
    }
    trained = [
        s.adapter.folder if s.adapter else s.checkpoint.folder for ref, s in plan.sources.items() if ref != plan.recipe.base
    ]
    copy_files(dict.fromkeys(tokenizer_companions(trained[0]), trained[0]), request.folder)
    write_record(request, plan, measured, library="peft")
    sync_folder(request.folder)
    return measured


def _concatenate(module: Module, reader: Reader) -> tuple[Array, Array]:
    """A and B of the sum, for every matrix of a stack: PEFT stacks A by expert and rank, B by rank and expert."""
    a, b, experts = [], [], module.experts
    for entry, coefficient in zip(module.plan.inputs, module.coefficients, strict=True):
        if entry.factors is not None:
            flat, tall = reader.whole(entry.factors.a), reader.whole(entry.factors.b)
            if not (np.isfinite(flat).all() and np.isfinite(tall).all()):
                raise _not_finite(module.plan, entry.source)
            a.append(flat.reshape(experts, -1, flat.shape[1]))
            scaled = tall.astype(np.float64) * (coefficient * entry.factors.scale)
            b.append(scaled.reshape(len(tall), -1, experts))
    flat, tall = np.concatenate(a, axis=1), np.concatenate(b, axis=1)
    return flat.reshape(-1, flat.shape[2]), tall.reshape(len(tall), -1).astype(np.float32)


def _approximate(
    module: Module, plan: MergePlan, reader: Reader, pool: ThreadPool, seed: int
) -> tuple[Array, Array, tuple[float, float]]:
    """(A, B, (squared error, squared norm)) of the merged delta's truncated SVD."""
    tensor = OpenTensor(module.plan, reader, around_zero=not module.reads_base)
    for source in tensor.nonfinite_factors():
        raise _not_finite(module.plan, source)
    merge_block = prepare(plan.recipe.method, tensor, pool, seed)

    def rows() -> Iterator[tuple[slice, Array]]:
        for block, out in _delta(tensor, merge_block, pool):
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
    error = (max(0.0, energy - float((values[:kept].astype(np.float64) ** 2).sum())), energy)
    tensor.close()
    return (tall.T.copy(), flat.T.copy(), error) if module.transposed else (flat, tall, error)


def _delta(tensor: OpenTensor, merge_block: MergeBlock, pool: ThreadPool) -> Iterator[tuple[Block, Array]]:
    """What the merge adds to the base, block by block: the merge around a reference of zero."""
    workspace = pool.workspace()
    for block in tensor.blocks:
        reference, deltas, bad = tensor.load_checked(workspace, block)
        for source in bad:
            raise _not_finite(tensor.plan, source)
        out = workspace.take("out", block.count)
        reference[:] = 0
        merge_block(workspace, block, reference, deltas, out)
        yield block, out


def _energy(plan: TensorPlan, merge: MergePlan, reader: Reader, pool: ThreadPool, seed: int) -> float:
    """The squared norm of what the merge adds to a tensor."""
    tensor = OpenTensor(plan, reader)
    merge_block = prepare(merge.recipe.method, tensor, pool, seed)
    energy = sum(float(np.einsum("i,i->", out, out, dtype=np.float64)) for _, out in _delta(tensor, merge_block, pool))
    tensor.close()
    return energy


def _relative(lost: float, whole: float) -> float:
    return math.sqrt(lost / whole) if whole else 0.0


def _write_errors(request: Request, errors: dict[str, tuple[float, float]], overall: float, left_out: list[str]) -> None:
    """approximation.json: ‖merged − written‖ / ‖merged‖ of what is added to the base, overall and for each tensor."""
    each = {name: _relative(*error) for name, error in errors.items()}
    write_json(
        request.folder / "approximation.json",
        {"rank": request.rank, "space": request.space, "relative_error": overall, "tensors": each, "left_out": left_out},
    )


def _left_out_warning(tensors: list[TensorPlan]) -> list[str]:
    if not tensors:
        return []
    kinds = sorted({kind_of(tensor) for tensor in tensors})
    asked = [kind for kind in kinds if kind in WHOLE]
    how = f"; they can be stored whole ({', '.join(f'--whole {kind}' for kind in asked)})" if asked else ""
    return [f"{len(tensors)} changed tensors are left out ({', '.join(kinds)}), such as {tensors[0].name}{how}"]


def _router_warning(planned: AdapterPlan) -> list[str]:
    """Routers of a mixture of experts are modules of their own kind in transformers 5, which PEFT has no LoRA for."""
    names = [tensor.name for tensor in planned.merge.tensors]
    mixed = {name.partition(".experts.")[0] for name in names if ".experts." in name}
    found = [m.name for m in planned.modules if m.reads_base and m.name.rpartition(".")[0] in mixed and m.name.endswith(ROUTERS)]
    if not found:
        return []
    what = f"factors of {len(found)} routers, such as {found[0]}"
    return [f"the adapter holds {what}, which PEFT does not load with transformers 5; merge it here into a model to use it there"]


def _whole(saved: Saved, reader: Reader, pool: ThreadPool, seed: int) -> Iterator[Array]:
    """A tensor that is stored whole, merged block by block as in a model."""
    tensor = OpenTensor(saved.plan, reader)
    merge_block = prepare(saved.method, tensor, pool, seed)
    workspace = pool.workspace()
    for block in tensor.blocks:
        reference, deltas, bad = tensor.load_checked(workspace, block)
        for source in bad:
            raise _not_finite(saved.plan, source)
        out = workspace.take("out", block.count)
        merge_block(workspace, block, reference, deltas, out)
        yield out
    tensor.close()


def _not_finite(tensor: TensorPlan, source: str) -> Malformed:
    return Malformed(
        f"{tensor.name} of {source} holds values that are not finite",
        "train or download that source again; no adapter can hold them",
    )


def _write(path: Path, shapes: dict[str, tuple[int, ...]], dtype: str, values: Iterator[Array]) -> int:
    """One safetensors file; `values` are all tensors' float32 values in order, in pieces of any size."""
    stored = STORED[dtype]
    width = ITEM_BYTES[stored]
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, shape in shapes.items():
        end = position + width * math.prod(shape)
        entries[name] = {"dtype": stored, "shape": shape, "data_offsets": [position, end]}
        position = end
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for piece in values:
            flat = np.ascontiguousarray(piece, np.float32).reshape(-1)
            raw = np.empty(flat.size * width, np.uint8)
            encode(flat, stored, raw)
            file.write(raw.data)
        assert file.tell() == 8 + len(text) + position, (file.tell(), position)
        file.flush()
        os.fsync(file.fileno())
    return path.stat().st_size


def _config(planned: AdapterPlan, folder: Path) -> dict[str, Any]:
    """A PEFT config under which every module's scale is 1: alpha equals the rank, module by module."""
    plan, modules = planned.merge, planned.modules
    adapters = [source.adapter for source in plan.sources.values() if source.adapter]
    first = adapters[0].config if adapters else {"task_type": _task(plan)}
    ranks = [module.rank for module in modules] or [1]
    usual = max(set(ranks), key=ranks.count)
    base, revision = name_of_base(plan.recipe.references()[0], [adapter.config for adapter in adapters], folder)
    biases = {str(adapter.config.get("bias") or "none") for adapter in adapters} - {"none"}
    saves_bias = any(saved.key.endswith(".bias") for saved in planned.saved)
    listed = [adapter.config.get("modules_to_save") or [] for adapter in adapters]
    named = list(dict.fromkeys(module for modules in listed for module in modules))
    stored = (
        saved.key.removeprefix("base_model.model.").rpartition(".")[0] for saved in planned.saved if saved.key.endswith("weight")
    )
    named += [leaf for leaf in dict.fromkeys(module.rpartition(".")[2] for module in stored) if not _is_named(leaf, named)]
    others = {module.name: module.rank for module in modules if module.rank != usual}
    return {
        "peft_type": "LORA",
        "task_type": first.get("task_type"),
        "base_model_name_or_path": base,
        "revision": revision,
        "r": usual,
        "lora_alpha": usual,
        "rank_pattern": others,
        "alpha_pattern": dict(others),
        "target_modules": _targets(planned),
        "target_parameters": _parameters(modules),
        "fan_in_fan_out": not any(m.key for m in modules)
        and (bool(first.get("fan_in_fan_out")) or any(m.transposed and not m.embedding for m in modules)),
        "bias": ("all" if "all" in biases or not biases else next(iter(biases))) if saves_bias else "none",
        "lora_dropout": 0.0,
        "use_rslora": False,
        "modules_to_save": named or None,
        **({"ensure_weight_tying": True} if planned.stays_tied else {}),
        "init_lora_weights": True,
        "inference_mode": True,
    }


def _task(plan: MergePlan) -> str | None:
    """PEFT's name of what the base does, where its architecture says it."""
    for source in plan.sources.values():
        if (architecture_name(source.checkpoint.config) or "").endswith(("ForCausalLM", "LMHeadModel")):
            return "CAUSAL_LM"
    return None


def _is_named(leaf: str, modules: list[str]) -> bool:
    return any(module.rpartition(".")[2] == leaf for module in modules)


def _targets(planned: AdapterPlan) -> list[str] | str:
    """Short names where they mean exactly these modules, full names otherwise; PEFT's word for none where all is stored whole."""
    names = {module.name for module in planned.modules if not module.key}
    if not names:
        return [] if planned.modules else NO_MODULES
    leaves = sorted({name.rpartition(".")[2] for name in names})
    every = {name.removesuffix(".weight") for name in planned.names.values() if name.endswith(".weight")}
    meant = {name for name in every if name.rpartition(".")[2] in leaves}
    return leaves if meant == names else sorted(names)


def _parameters(modules: tuple[Module, ...]) -> list[str] | None:
    """The stacks of experts among them, in full: a short name would mean those of every layer."""
    return [module.name for module in modules if module.key] or None
