"""Results as FP8 (E4M3) codes with a scale for each block, as one of the models stores them.

A block of scales (128 × 128 values, a row, a whole matrix …) in which every merged value is the number that is stored there keeps
its codes and its scale byte for byte. Any other is quantised anew: scale = max|w| ÷ 448, rounded to the dtype of the scales,
code = the nearest E4M3 number to w ÷ scale, ties to even, 448 at most. Scales that are powers of two (E8M0, or
`scale_fmt: ue8m0`) are the next one above. A block of zeros takes the scale 1.

Source: DeepSeek-V3, inference/kernel.py (act_quant: s = max|x| ÷ 448, y = x ÷ s) and its scale_fmt ue8m0;
transformers.integrations.finegrained_fp8 (Fp8Quantize); the OCP 8-bit floating point specification.
"""

from __future__ import annotations

import threading
from typing import Any, Final

import numpy as np

from mcp_server.engine import fp8_kernels
from mcp_server.engine.blocks import Block, split
from mcp_server.engine.codecs import decode, encode
from mcp_server.engine.reader import Reader
from mcp_server.engine.thread_pool import Workspace
from mcp_server.engine.unpack import exponents, float8_table
from mcp_server.engine.unpack.kernels import by_byte
from mcp_server.formats.quantised.scaled import Scaled
from mcp_server.formats.tensors import ITEM_BYTES

Array = np.ndarray[Any, Any]

LARGEST: Final = np.float32(448)
_SMALLEST: Final = {"F32": 2.0**-149, "BF16": 2.0**-133, "F16": 2.0**-24}
_NOT_A_NUMBER: Final = 0x7F
_BIAS: Final = 127


class Fp8:
    """One tensor's codes and scales. `measure` and `store` may be called from any thread."""

    item_bytes = 1

    def __init__(self, form: Scaled, reader: Reader, *, powers_of_two: bool) -> None:
        self.form, self.reader, self.powers_of_two = form, reader, powers_of_two
        self.high, self.wide = form.block
        self.per_matrix = form.shape[-2]
        self.bands = -(-self.per_matrix // self.high)
        self.table = float8_table(form.codes.dtype)
        width = ITEM_BYTES[form.scale.dtype]
        raw = np.empty(form.scale.nbytes, np.uint8)
        reader.bytes_into(form.scale.file, form.scale.offset, raw)
        self.scale_bytes = raw.reshape(-1, -(-form.columns // self.wide), width)
        self.scale = self._decoded(self.scale_bytes)
        self.changed = np.zeros(self.scale.shape, np.bool_)
        self._most = np.zeros(self.scale.shape, np.float32)
        self._stored_scale = self.scale.copy()
        self._lock = threading.Lock()
        self.measures = any(not self._is_whole(block) for block in split(form.shape))

    def _is_whole(self, block: Block) -> bool:
        """Whether no block of scales goes on beyond these rows."""
        first, last = block.row % self.per_matrix, (block.row + block.rows) % self.per_matrix
        return first % self.high == 0 and last % self.high == 0

    def measure(self, workspace: Workspace, block: Block, values: Array) -> None:
        begin = self._band(block.row)
        end = self._band(block.row + block.rows - 1) + 1
        most = np.zeros((end - begin, self.scale.shape[1]), np.float32)
        changed = np.zeros(most.shape, np.bool_)
        codes, rows = self._codes(workspace, block), values.reshape(block.rows, -1)
        place = (self.per_matrix, block.row, self.high, self.wide)
        fp8_kernels.measure(rows, codes, self.table, self._stored_scale, *place, most, changed)
        with self._lock:
            most = np.maximum(self._most[begin:end], most)
            changed |= self.changed[begin:end]
            self._most[begin:end], self.changed[begin:end] = most, changed
            fresh = self._encoded(most)
            self.scale_bytes[begin:end][changed] = fresh[changed]
            self.scale[begin:end][changed] = self._decoded(fresh)[changed]

    def store(self, workspace: Workspace, block: Block, values: Array, raw: Array) -> int:
        if not self.measures:
            self.measure(workspace, block, values)
        codes = raw.reshape(block.rows, -1)
        self._quantise(workspace, block, values, codes)
        place = (self.per_matrix, block.row, self.high, self.wide)
        fp8_kernels.keep(codes, self._codes(workspace, block), self.changed, *place)
        return int((raw & _NOT_A_NUMBER == _NOT_A_NUMBER).sum())

    def stored(self, workspace: Workspace, block: Block, values: Array, raw: Array) -> Array:  # noqa: ARG002
        return self._numbers(block, raw, workspace.take("rounded", block.count))

    def on_grid(self, workspace: Workspace, block: Block, reference: Array) -> Array:
        raw = workspace.take("raw", block.count, np.uint8)
        self._quantise(workspace, block, reference, raw.reshape(block.rows, -1))
        return self._numbers(block, raw, workspace.take("grid", block.count))

    def _quantise(self, workspace: Workspace, block: Block, values: Array, codes: Array) -> None:
        parts = workspace.take("quotients", block.count)
        place = (self.per_matrix, block.row, self.high, self.wide)
        fp8_kernels.divide(values.reshape(block.rows, -1), self.scale, *place, parts.reshape(block.rows, -1))
        fp8_kernels.encode(parts, parts.view(np.uint32), codes.reshape(-1))

    def _numbers(self, block: Block, raw: Array, out: Array) -> Array:
        scale = self.scale.reshape(-1, self.bands, self.scale.shape[1])
        place = (self.per_matrix, block.row, self.high, self.wide)
        by_byte(raw.reshape(block.rows, -1), self.table, scale, *place, out.reshape(block.rows, -1))
        return out

    def _codes(self, workspace: Workspace, block: Block) -> Array:
        codes = workspace.take("codes", block.count, np.uint8)
        self.reader.bytes_into(self.form.codes.file, self.form.codes.offset + block.start, codes)
        return codes.reshape(block.rows, -1)

    def _band(self, row: int) -> int:
        return row // self.per_matrix * self.bands + row % self.per_matrix // self.high

    def _encoded(self, most: Array) -> Array:
        """The scales' bytes (…, width) for the largest magnitudes of their blocks."""
        dtype = self.form.scale.dtype
        smallest = np.float32(_SMALLEST.get(dtype, _SMALLEST["F32"]))
        scale = np.where(most > 0, np.maximum(most / LARGEST, smallest), np.float32(1))
        if self.powers_of_two or dtype not in _SMALLEST:
            mantissa, exponent = np.frexp(scale)  # mantissa in [½, 1)
            exponent = exponent.astype(np.int32) - (mantissa == np.float32(0.5))
            if dtype not in _SMALLEST:
                return np.clip(exponent + _BIAS, 0, 254).astype(np.uint8)[..., None]
            scale = np.ldexp(np.float32(1), exponent)
        raw = np.empty(scale.size * ITEM_BYTES[dtype], np.uint8)
        encode(np.ascontiguousarray(scale, np.float32).reshape(-1), dtype, raw)
        return raw.reshape(*most.shape, -1)

    def _decoded(self, raw: Array) -> Array:
        dtype = self.form.scale.dtype
        if dtype not in _SMALLEST:
            return exponents()[raw[..., 0]]
        out = np.empty(raw.size // raw.shape[-1], np.float32)
        decode(np.ascontiguousarray(raw).reshape(-1), dtype, out)
        return out.reshape(raw.shape[:-1])
