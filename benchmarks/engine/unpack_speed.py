"""How fast packed weights are read: GB of packed input a second, one weight of 14,336 × 4,096 in each layout, cached.

.venv/bin/python benchmarks/engine/unpack_speed.py [THREADS]
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from mcp_server.engine.blocks import Block, split
from mcp_server.engine.reader import Reader
from mcp_server.engine.thread_pool import ThreadPool, Workspace
from mcp_server.formats.checkpoint import open_checkpoint

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
        "MXFP4 of gpt-oss": {
            "w_blocks": codes(4, ROWS // 4, COLUMNS // 32, 16), "w_scales": codes(4, ROWS // 4, COLUMNS // 32) % 8 + 120,
        },
        "MXFP4": {"m.weight_packed": codes(ROWS, COLUMNS // 2), "m.weight_scale": codes(ROWS, COLUMNS // 32) % 8 + 120},
        "compressed-tensors int4": {
            "m.weight_packed": codes(ROWS, COLUMNS // 8, dtype=np.int32), "m.weight_scale": scales(ROWS, COLUMNS // 128),
            "m.weight_shape": np.array([ROWS, COLUMNS]),
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


def seconds(folder: Path, threads: int) -> tuple[float, float]:
    """(wall, processor) seconds over the whole weight, each the best of some runs."""
    (stored,) = open_checkpoint(str(folder)).tensors.values()
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
    print(f"{'layout':26} {'packed MB':>9} {'GB/s':>6} {'GB per core second':>18} {'values/s':>10}")
    for name, tensors in layouts().items():
        with tempfile.TemporaryDirectory() as folder:
            save_file(tensors, Path(folder) / "model.safetensors")
            (Path(folder) / "config.json").write_text("{}", encoding="utf-8")
            size, (wall, busy) = sum(part.nbytes for part in tensors.values()), seconds(Path(folder), threads)
        rate = ROWS * COLUMNS / wall / 1e9
        print(f"{name:26} {size / 1e6:9.1f} {size / wall / 1e9:6.2f} {size / busy / 1e9:18.2f} {rate:8.2f} G")


if __name__ == "__main__":
    main()
