"""Experts that one source stores as a stack and another matrix by matrix: the stack is read matrix by matrix.

transformers 5 saves either form of the same model. A matrix of a stack lies in one run of bytes, so nothing is copied: it
becomes a stored tensor of its own, at its offset. Stacks that are turned over, interleaved or packed stay as they are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from mcp_server.formats.checkpoint import Checkpoint
from mcp_server.formats.memory_names import Held, Piece, in_memory
from mcp_server.formats.tensors import FLOATS, ITEM_BYTES, StoredTensor


def alike(checkpoints: Mapping[str, Checkpoint]) -> tuple[dict[str, Checkpoint], dict[str, str]]:
    """The checkpoints with stacks taken apart where another one stores the parts, and what to say of each that was changed."""
    if len({frozenset(checkpoint.tensors) for checkpoint in checkpoints.values()}) < 2:
        return dict(checkpoints), {}
    memory = {ref: in_memory(checkpoint.config, checkpoint.tensors) for ref, checkpoint in checkpoints.items()}
    apart: dict[str, Held] = {}
    for names in memory.values():
        apart |= {name: held for name, held in names.items() if len(held.pieces) > 1 and all(map(_contiguous, held.pieces))}
    found, said = {}, {}
    for ref, checkpoint in checkpoints.items():
        parts: dict[str, dict[str, StoredTensor]] = {}
        for name, held in apart.items():
            mine = memory[ref].get(name)
            if mine is None or len(mine.pieces) != 1 or mine.pieces[0].region is not None:
                continue
            stack = checkpoint.tensors[mine.pieces[0].name]
            if stack.shape == held.shape and stack.packed is None and stack.dtype in FLOATS:
                parts[mine.pieces[0].name] = {piece.name: _part(stack, piece) for piece in held.pieces}
        tensors: dict[str, StoredTensor] = {}
        for name, stored in checkpoint.tensors.items():
            tensors |= parts.get(name) or {name: stored}
        found[ref] = replace(checkpoint, tensors=tensors) if parts else checkpoint
        if parts:
            said[ref] = (
                f"{ref} stores {len(parts)} stacks of matrices, such as {next(iter(parts))}, which another source stores one by "
                "one: they are merged and written one by one"
            )
    return found, said


def _contiguous(piece: Piece) -> bool:
    return piece.region is not None and piece.region.columns is None and not piece.region.flip and not piece.region.at


def _part(stack: StoredTensor, piece: Piece) -> StoredTensor:
    region = piece.region
    assert region is not None
    height, width = stack.shape[-2:]
    first, end = region.rows or (0, height)
    start = ((region.expert or 0) * height + first) * width
    shape = (end - first, width)
    return StoredTensor(stack.file, stack.offset + start * ITEM_BYTES[stack.dtype], stack.dtype, shape, math.prod(shape))
