"""An adapter's updates of one tensor, computed block by block in float32. `formats.updates` says what each of them is.

`apply(block, values)` changes a block of the base's weight in place; a sum of low-rank products has `add_into` as well, which
needs no base. A block of a product depends on the block alone, so its rounding does too.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from mcp_server.engine.blocks import Block, split
from mcp_server.engine.reader import Reader
from mcp_server.engine.thread_pool import Workspace
from mcp_server.formats.tensors import StoredTensor
from mcp_server.formats.updates import Change, LowRank, Product, Rows, Scaled, Update

Array = np.ndarray[Any, Any]


class OpenUpdates:
    """All updates of one tensor by one adapter. `additive` says that they are one ΔW that does not depend on the weight."""

    def __init__(self, updates: tuple[Update, ...], stored: StoredTensor, reader: Reader) -> None:
        self.shape = stored.shape
        self.parts: list[_Sum | _Norm | _Rows | _Scaled] = []
        for update in updates:
            if isinstance(update, LowRank):
                low = _Sum.low_rank(update, self.shape, reader)
                self.parts.append(low)
                if update.magnitude is not None:
                    norm = reader.whole(update.magnitude).reshape(-1)
                    self.parts[-1] = _Norm(low, norm, stored, reader, columns=update.transposed)
            elif isinstance(update, Product):
                self.parts.append(_Sum.product(update, self.shape, reader))
            elif isinstance(update, Rows):
                self.parts.append(_Rows(update.indices, reader.whole(update.values)))
            else:
                self.parts.append(_Scaled(update, reader))
        self.additive = all(isinstance(part, _Sum) for part in self.parts)

    def add_into(self, block: Block, out: Array) -> None:
        """ΔW of the block, when the updates are additive."""
        for number, part in enumerate(self.parts):
            assert isinstance(part, _Sum)
            if number == 0 and part.covers:
                part.fill(block, out)
            else:
                if number == 0:
                    out[:] = 0
                part.add(block, out)

    def apply(self, block: Block, values: Array, workspace: Workspace) -> None:
        for part in self.parts:
            if isinstance(part, _Sum) and part.covers:
                update = workspace.take("update", block.count)
                part.fill(block, update)
                np.add(values, update, out=values)
            elif isinstance(part, _Sum):
                part.add(block, values)
            else:
                part.apply(block, values)

    def nonfinite(self) -> int:
        return sum(part.nonfinite() for part in self.parts)


class _Sum:
    """ΔW = Σ over the matrices of a stack of left·right, or an elementwise or Kronecker product of such, at a row of the tensor.

    The tensor's elements are seen as rows of `width`: a convolution's kernel is one row, a stack of experts is all their rows.
    """

    def __init__(self, left: Array, right: Array, shape: tuple[int, ...], at: int = 0) -> None:
        self.left, self.right, self.at = left, right, at
        self.height, self.width = left.shape[1], right.shape[2]
        total = math.prod(shape) // self.width if self.width else 0
        self.rows = left.shape[0] * self.height
        self.covers = at == 0 and self.rows == total
        self.second: tuple[Array, Array] | None = None
        self.kron: tuple[Array, Array] | None = None

    @classmethod
    def low_rank(cls, update: LowRank, shape: tuple[int, ...], reader: Reader) -> _Sum:
        a, b = reader.whole(update.a), reader.whole(update.b)
        b *= np.float32(update.scale)
        a, b = (x.reshape(x.shape[0], math.prod(x.shape[1:])) for x in (a, b))
        if update.experts > 1:
            right = a.reshape(update.experts, update.rank, -1)
            left = b.reshape(b.shape[0], update.rank, update.experts).transpose(2, 0, 1)
        else:
            left, right = b[None], a[None]
        if update.transposed:
            left, right = right.transpose(0, 2, 1), left.transpose(0, 2, 1)
        region = update.region
        if region is not None:
            if region.expert is not None:
                left, right = left[region.expert : region.expert + 1], right[region.expert : region.expert + 1]
            left = left[:, slice(*region.rows)] if region.rows else left
            right = right[:, :, slice(*region.columns)] if region.columns else right
            if region.flip:
                left, right = right.transpose(0, 2, 1), left.transpose(0, 2, 1)
        return cls(np.ascontiguousarray(left), np.ascontiguousarray(right), shape, region.at if region else 0)

    @classmethod
    def product(cls, update: Product, shape: tuple[int, ...], reader: Reader) -> _Sum:
        values = {name: reader.whole(stored) for name, stored in update.factors.items()}
        scale = np.float32(update.scale)
        if update.kind == "VERA":
            left = values["vera_lambda_b"][:, None] * values["B"][: shape[0]]
            right = values["vera_lambda_d"][:, None] * values["A"][:, : shape[-1]]
            return cls(left[None], right[None], shape)
        if update.kind == "LOHA":
            found = cls(values["hada_w1_a"][None] * scale, values["hada_w1_b"][None], shape)
            found.second = (values["hada_w2_a"], values["hada_w2_b"])
            return found
        first, second = (
            values[f"lokr_{w}"] if f"lokr_{w}" in values else values[f"lokr_{w}_a"] @ values[f"lokr_{w}_b"] for w in ("w1", "w2")
        )
        rows, columns = first.shape[0] * second.shape[0], first.shape[1] * second.shape[1]
        found = cls(np.zeros((1, rows, 0), np.float32), np.zeros((1, 0, columns), np.float32), shape)
        found.kron = (first * scale, second)
        return found

    def _lines(self, start: int, stop: int) -> Array:
        """Rows `start` … `stop` of this update."""
        if self.kron is not None:
            first, second = self.kron
            line = np.arange(start, stop)
            above, below = first[line // second.shape[0]], second[line % second.shape[0]]
            return (above[:, :, None] * below[:, None, :]).reshape(stop - start, self.width)
        out = np.empty((stop - start, self.width), np.float32)
        done = start
        while done < stop:
            number, row = divmod(done, self.height)
            count = min(stop - done, self.height - row)
            np.matmul(self.left[number, row : row + count], self.right[number], out=out[done - start : done - start + count])
            done += count
        if self.second is not None:
            out *= self.second[0][start:stop] @ self.second[1]
        return out

    def fill(self, block: Block, out: Array) -> None:
        """ΔW of the block, for an update of the whole tensor."""
        if block.columns == self.width and self.left.shape[0] == 1 and self.second is None and self.kron is None:
            rows = self.left[0, block.row : block.row + block.rows]
            np.matmul(rows, self.right[0], out=out.reshape(block.rows, block.columns))
            return
        first, last = block.start // self.width, -(-(block.start + block.count) // self.width)
        skip = block.start - first * self.width
        out[:] = self._lines(first, last).reshape(-1)[skip : skip + block.count]

    def add(self, block: Block, out: Array) -> None:
        """Add ΔW to the part of the block that it reaches."""
        start = max(block.start, self.at * self.width)
        stop = min(block.start + block.count, (self.at + self.rows) * self.width)
        if stop <= start:
            return
        first, last = start // self.width, -(-stop // self.width)
        skip = start - first * self.width
        lines = self._lines(first - self.at, last - self.at).reshape(-1)
        out[start - block.start : stop - block.start] += lines[skip : skip + stop - start]

    def nonfinite(self) -> int:
        every = (self.left, self.right, *(self.second or ()), *(self.kron or ()))
        return sum(int(part.size - np.isfinite(part).sum()) for part in every)


class _Norm:
    """DoRA: W + ΔW, each row (or column) scaled to the norm that was trained: m / ‖W + ΔW‖, with the base's own W."""

    def __init__(self, low: _Sum, magnitude: Array, stored: StoredTensor, reader: Reader, *, columns: bool) -> None:
        self.low, self.columns = low, columns
        self.inner = stored.shape[-1] if columns else math.prod(stored.shape[1:])
        squares = np.zeros(magnitude.size, np.float64)
        workspace = Workspace()
        for block in split(stored.shape):
            values = workspace.take("values", block.count)
            reader.values(stored, block, workspace, values)
            update = workspace.take("update", block.count)
            low.fill(block, update)
            wide = np.square(values.astype(np.float64) + update)
            if columns:
                squares += wide.reshape(-1, self.inner).sum(axis=0)
            else:
                np.add.at(squares, np.arange(block.start, block.start + block.count) // self.inner, wide)
        self.factor = (magnitude / np.sqrt(squares)).astype(np.float32)

    def apply(self, block: Block, values: Array) -> None:
        update = np.empty(block.count, np.float32)
        self.low.fill(block, update)
        values += update
        if self.columns:
            values.reshape(-1, self.inner)[:] *= self.factor
        else:
            values *= self.factor[np.arange(block.start, block.start + block.count) // self.inner]

    def nonfinite(self) -> int:
        return self.low.nonfinite() + int(self.factor.size - np.isfinite(self.factor).sum())


class _Rows:
    def __init__(self, indices: tuple[int, ...], values: Array) -> None:
        self.indices, self.values = indices, values

    def apply(self, block: Block, values: Array) -> None:
        table = values.reshape(block.rows, block.columns)
        for index, row in zip(self.indices, self.values, strict=True):
            if block.row <= index < block.row + block.rows:
                table[index - block.row] = row

    def nonfinite(self) -> int:
        return int(self.values.size - np.isfinite(self.values).sum())


class _Scaled:
    def __init__(self, update: Scaled, reader: Reader) -> None:
        self.factor, self.columns = reader.whole(update.vector).reshape(-1), update.columns

    def apply(self, block: Block, values: Array) -> None:
        table = values.reshape(block.rows, block.columns)
        table *= self.factor if self.columns else self.factor[block.row : block.row + block.rows, None]

    def nonfinite(self) -> int:
        return int(self.factor.size - np.isfinite(self.factor).sum())


def adapted(stored: StoredTensor, change: Change, reader: Reader) -> Array:
    """A whole tensor as the adapter makes it, as float32 in its shape."""
    source = change.replacement or stored
    out = np.empty(source.count, np.float32)
    for block, values in adapted_blocks(stored, change, reader):
        out[block.start : block.start + block.count] = values
    return out.reshape(source.shape)


def adapted_blocks(stored: StoredTensor, change: Change | None, reader: Reader) -> Iterator[tuple[Block, Array]]:
    """The same block by block, each in an array that the next one overwrites; without a change, the tensor as it is."""
    source = (change.replacement if change is not None else None) or stored
    updates = OpenUpdates(change.updates, source, reader) if change is not None else None
    workspace, blocks = Workspace(), split(source.shape)
    buffer = np.empty(max((block.count for block in blocks), default=0), np.float32)
    for block in blocks:
        values = buffer[: block.count]
        reader.values(source, block, workspace, values)
        if updates is not None:
            updates.apply(block, values, workspace)
        yield block, values
