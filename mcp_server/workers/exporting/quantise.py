"""From a GGUF in 16 or 32 bits to a quantised one, block of rows by block of rows, counting what the rounding costs.

The metadata are copied as they are (only `general.file_type` changes), so tokens and chat template cannot be lost. The kernels
are ggml's reference ones (libgguf). Memory: some blocks of `BLOCK` values a thread, whatever the model's size.
"""

from __future__ import annotations

import os
import struct
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import prod, sqrt
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np

from mcp_server.errors import RunFailed
from mcp_server.formats.gguf import Gguf, read_gguf
from mcp_server.formats.quantised.ggml import SIZES, TYPES
from mcp_server.steps.export.mixture import FILE_TYPES, mixture
from mcp_server.workers.protocol import Job

BLOCK: Final = 1 << 21
_NUMBERS: Final = {name: number for number, (name, _, _) in TYPES.items()}
_FLOATS: Final = frozenset({"F32", "F16", "BF16"})
_FILE_TYPE: Final = struct.pack("<Q", 17) + b"general.file_type" + struct.pack("<I", 4)


@dataclass(frozen=True)
class Quantised:
    types: dict[str, int]
    error: float
    worst: str


def quantise(source: Path, target: Path, quant: str, threads: int | None, job: Job) -> Quantised:
    """Write `target`. `error` is ‖quantised − source‖ / ‖source‖ over the tensors that were quantised."""
    gguf = read_gguf(source)
    wanted = mixture(quant, gguf.shapes, gguf.metadata)
    kinds = {name: wanted[name] if name in wanted and gguf.types[name] in _FLOATS else kind for name, kind in gguf.types.items()}
    alignment = int(gguf.metadata.get("general.alignment", 32))
    sizes = {name: _bytes(kinds[name], shape) for name, shape in gguf.shapes.items()}
    total, done = sum(sizes.values()), 0
    errors: dict[str, tuple[float, float]] = {}
    workers = threads or os.cpu_count() or 1
    with source.open("rb") as stream, target.open("wb") as out, ThreadPoolExecutor(workers) as pool:
        out.write(_head(stream, gguf, kinds, sizes, alignment, FILE_TYPES[quant]))
        start = out.tell()
        for name, shape in gguf.shapes.items():
            out.write(bytes(-(out.tell() - start) % alignment))
            stream.seek(gguf.header.data_start + gguf.header.tensors[name].begin)
            if kinds[name] == gguf.types[name]:
                _copy(stream, out, sizes[name])
            else:
                errors[name] = _tensor(stream, out, shape, gguf.types[name], kinds[name], pool, workers)
            done += sizes[name]
            job.progress("quantise", done, total, unit="bytes")
        out.flush()
        os.fsync(out.fileno())
    counted: dict[str, int] = {}
    for kind in kinds.values():
        counted[kind] = counted.get(kind, 0) + 1
    lost, whole = sum(e for e, _ in errors.values()), sum(w for _, w in errors.values())
    worst = max(errors, key=lambda n: errors[n][0] / errors[n][1] if errors[n][1] else 0.0, default="")
    return Quantised(counted, sqrt(lost / whole) if whole else 0.0, worst)


def _bytes(kind: str, shape: tuple[int, ...]) -> int:
    per, wide = SIZES[kind]
    return prod(shape) // per * wide


def _head(
    stream: BinaryIO, gguf: Gguf, kinds: dict[str, str], sizes: dict[str, int], alignment: int, file_type: int
) -> bytes:  # fmt: skip
    """The new file's header: metadata as they were, with the new types and offsets of the tensors."""
    head = bytearray(stream.read(gguf.metadata_end))
    at = head.find(_FILE_TYPE)
    if at < 0:
        raise RunFailed(f"{gguf.file.name} does not say general.file_type", "report it: the converter always writes it")
    struct.pack_into("<I", head, at + len(_FILE_TYPE), file_type)
    offset = 0
    for name, shape in gguf.shapes.items():
        raw = name.encode()
        head += struct.pack("<Q", len(raw)) + raw + struct.pack("<I", len(shape))
        head += struct.pack(f"<{len(shape)}Q", *reversed(shape)) + struct.pack("<IQ", _NUMBERS[kinds[name]], offset)
        offset += sizes[name] + -sizes[name] % alignment
    return bytes(head) + bytes(-len(head) % alignment)


def _copy(stream: BinaryIO, out: BinaryIO, left: int) -> None:
    while left:
        piece = stream.read(min(left, 1 << 22))
        out.write(piece)
        left -= len(piece)


def _tensor(
    stream: BinaryIO, out: BinaryIO, shape: tuple[int, ...], stored: str, kind: str, pool: ThreadPoolExecutor, workers: int
) -> tuple[float, float]:
    """Quantise one tensor; (Σ error², Σ value²). As many blocks are held as there are threads, in order."""
    columns, rows = shape[-1], prod(shape[:-1])
    step = max(1, BLOCK // columns)
    lost = whole = 0.0
    for first in range(0, rows, step * workers):
        counts = [min(step, rows - row) for row in range(first, min(rows, first + step * workers), step)]
        blocks = [_values(stream, count * columns, stored).reshape(count, columns) for count in counts]
        for codes, error, square in pool.map(lambda block: _block(block, kind), blocks):
            out.write(codes)
            lost, whole = lost + error, whole + square
    return lost, whole


def _values(stream: BinaryIO, count: int, stored: str) -> Any:
    raw = stream.read(count * SIZES[stored][1])
    if stored == "BF16":
        return (np.frombuffer(raw, np.uint16).astype(np.uint32) << 16).view(np.float32)
    return np.frombuffer(raw, {"F16": np.float16, "F32": np.float32}[stored]).astype(np.float32)


def _block(values: Any, kind: str) -> tuple[bytes, float, float]:
    import libgguf

    if kind == "F16":
        codes = values.astype(np.float16)
        back = codes.astype(np.float32)
    else:
        codes = libgguf.quantize_rows(values, libgguf.GGMLQuantizationType[kind])
        back = libgguf.dequantize_rows(codes, libgguf.GGMLQuantizationType[kind], n_per_row=values.shape[-1])
    difference = (back - values).ravel()
    flat = values.ravel()
    return codes.tobytes(), float(difference @ difference), float(flat @ flat)
