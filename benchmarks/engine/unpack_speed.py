"""How fast packed weights are read: GB of packed input a second, one weight of 14,336 × 4,096 in each layout, cached.

.venv/bin/python benchmarks/engine/unpack_speed.py [THREADS [LAYOUT ...]]
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from mcp_server.engine.blocks import Block, split
from mcp_server.engine.reader import Reader
from mcp_server.engine.thread_pool import ThreadPool, Workspace
from mcp_server.formats.checkpoint import open_checkpoint
from mcp_server.formats.quantised.ggml import SIZES, Ggml
from mcp_server.formats.quantised.part import Part
from mcp_server.formats.tensors import StoredTensor

ROWS, COLUMNS, RUNS = 14_336, 4_096, 5
NUMBERS = np.random.default_rng(0)


def codes(*shape: int, dtype: type = np.uint8) -> np.ndarray:
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return NUMBERS.integers(0, 256, size, np.uint8).view(dtype).reshape(shape)


def scales(*shape: int) -> np.ndarray:
    return NUMBERS.random(shape, np.float32)


def layouts() -> dict[str, dict[str, np.ndarray]]:
    count, state = ROWS * COLUMNS, {"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [ROWS, COLUMNS]}
    said = np.frombuffer(json.dumps(state).encode(), np.uint8)
    return {
        "bitsandbytes nf4": {
            "w": codes(count // 2, 1), "w.absmax": scales(count // 64), "w.quant_map": scales(16),
            "w.quant_state.bitsandbytes__nf4": said,
        },
        "bitsandbytes int8": {"m.weight": codes(ROWS, COLUMNS, dtype=np.int8), "m.SCB": scales(ROWS)},
        "int8, scale a row": {"m.weight": codes(ROWS, COLUMNS, dtype=np.int8), "m.weight_scale": scales(ROWS, 1)},
        "FP8, blocks of 128": {
            "m.weight": codes(ROWS, COLUMNS) & 0x77, "m.weight_scale_inv": scales(ROWS // 128, COLUMNS // 128),
        },
        "MXFP4 of gpt-oss": {
            "w_blocks": codes(4, ROWS // 4, COLUMNS // 32, 16), "w_scales": codes(4, ROWS // 4, COLUMNS // 32) % 8 + 120,
        },
        "MXFP4": {"m.weight_packed": codes(ROWS, COLUMNS // 2), "m.weight_scale": codes(ROWS, COLUMNS // 32) % 8 + 120},
        "compressed-tensors int4": {
            "m.weight_packed": codes(ROWS, COLUMNS // 8, dtype=np.int32), "m.weight_scale": scales(ROWS, COLUMNS // 128),
            "m.weight_shape": np.array([ROWS, COLUMNS]),
        },
        "compressed-tensors int3": {
            "m.weight_packed": codes(ROWS, COLUMNS * 3 // 32, dtype=np.int32), "m.weight_scale": scales(ROWS, COLUMNS // 128),
            "m.weight_shape": np.array([ROWS, COLUMNS]),
        },
        "GPTQ int4, inputs in order of activation": {
            "m.qweight": codes(COLUMNS // 8, ROWS, dtype=np.int32), "m.qzeros": codes(COLUMNS // 128, ROWS // 8, dtype=np.int32),
            "m.scales": scales(COLUMNS // 128, ROWS), "m.g_idx": NUMBERS.permutation(COLUMNS).astype(np.int32) // 128,
        },
        "GPTQ int4": {
            "m.qweight": codes(COLUMNS // 8, ROWS, dtype=np.int32), "m.qzeros": codes(COLUMNS // 128, ROWS // 8, dtype=np.int32),
            "m.scales": scales(COLUMNS // 128, ROWS),
        },
        "AWQ int4": {
            "m.qweight": codes(COLUMNS, ROWS // 8, dtype=np.int32), "m.qzeros": codes(COLUMNS // 128, ROWS // 8, dtype=np.int32),
            "m.scales": scales(COLUMNS // 128, ROWS),
        },
    }  # fmt: skip


GGUF = (
    "Q2_K", "Q3_K", "Q4_0", "Q4_1", "Q4_K", "Q5_0", "Q5_1", "Q5_K", "Q6_K", "Q8_0", "IQ4_NL", "IQ4_XS", "IQ3_S", "IQ2_XS",
)  # fmt: skip


def packed(folder: Path, tensors: dict[str, np.ndarray]) -> StoredTensor:
    stored = {name: torch.from_numpy(values.copy()) for name, values in tensors.items()}
    if "m.weight_scale_inv" in stored:
        stored["m.weight"] = stored["m.weight"].view(torch.float8_e4m3fn)
    save_file(stored, folder / "model.safetensors")
    said = {"quantization_config": {"quant_method": "gptq"}} if "m.qweight" in tensors and "AWQ" not in folder.name else {}
    (folder / "config.json").write_text(json.dumps(said), encoding="utf-8")
    (weight,) = open_checkpoint(str(folder)).tensors.values()
    return weight


def ggml(folder: Path, kind: str) -> StoredTensor:
    values, size = SIZES[kind]
    file, raw = folder / "weight", codes(ROWS * COLUMNS // values, size) & 0x3B  # no half float is infinite
    raw.tofile(file)
    packing = Ggml((ROWS, COLUMNS), "BF16", kind, Part("w", file, 0, "U8", raw.shape, raw.nbytes))
    return StoredTensor(file, 0, "BF16", packing.shape, ROWS * COLUMNS, packing)


def seconds(stored: StoredTensor, threads: int) -> tuple[float, float]:
    """(wall, processor) seconds over the whole weight, each the best of some runs."""
    reader, pool, best = Reader(), ThreadPool(threads), (float("inf"), float("inf"))

    def work(workspace: Workspace, block: Block) -> None:
        reader.values(stored, block, workspace, workspace.take("values", block.count))

    for _ in range(RUNS):
        start = time.perf_counter(), time.process_time()
        pool.run(work, split(stored.shape))
        reader.done_with(stored)
        best = min(best[0], time.perf_counter() - start[0]), min(best[1], time.process_time() - start[1])
    pool.close()
    reader.close()
    return best


def main() -> None:
    threads = int(sys.argv[1]) if len(sys.argv) > 1 else 2
    print("| layout | packed MB | GB/s | GB per core second | values per core second |\n|---|---|---|---|---|")
    made: dict[str, Callable[[Path], StoredTensor]] = {
        name: partial(packed, tensors=tensors) for name, tensors in layouts().items()
    }
    made |= {f"GGUF {kind}": partial(ggml, kind=kind) for kind in GGUF}
    chosen = sys.argv[2:] or [*made]
    for name, make in ((name, made[name]) for name in chosen):
        with tempfile.TemporaryDirectory(suffix=name.replace(" ", "-")) as folder:
            stored = make(Path(folder))
            size, (wall, busy) = stored.nbytes, seconds(stored, threads)
        rate = ROWS * COLUMNS / busy / 1e9
        print(f"| {name} | {size / 1e6:.0f} | {size / wall / 1e9:.2f} | {size / busy / 1e9:.2f} | {rate:.2f} G |", flush=True)


if __name__ == "__main__":
    main()
