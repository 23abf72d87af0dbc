#!/usr/bin/env python3
"""The headline on the base that a QLoRA has: Llama-3-8B's full shape in NF4, TIES of two LoRA adapters, in a 2 GiB memory cgroup.

usage: headline_4bit.py [--work DIR] [--shape llama3-8b] [--limit-gib 2] [-o RESULTS.md]

Needs root, bitsandbytes and 23 GB of disk. The base is stored as transformers stores a bitsandbytes model: linear layers in NF4,
blocks of 64, the scales quantised too; embeddings, head and norms in bf16. Its codes are drawn at random. Afterwards `verify`
computes samples of every tensor again, outside the limit. Exit status 77 where no cgroup can be made.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import os
import platform
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from headline import limited, recipe
from safetensors.torch import save_file
from synthetic import CHUNK, LINEAR, SHAPES, Shape, write_lora

from mcp_server.steps.verify import verify

BLOCK, NESTED = 64, 256


def nf4(shape: tuple[int, ...], numbers: np.random.Generator) -> dict[str, torch.Tensor]:
    """Suffix → stored tensor of one weight: random codes under scales of about 0.05, in bitsandbytes' layout."""
    from bitsandbytes.functional import create_dynamic_map, get_4bit_type

    blocks = math.prod(shape) // BLOCK
    said = {"quant_type": "nf4", "blocksize": BLOCK, "dtype": "bfloat16", "shape": list(shape), "nested_blocksize": NESTED,
            "nested_dtype": "float32", "nested_offset": 0.05}  # fmt: skip
    return {
        "": torch.from_numpy(numbers.integers(0, 256, (math.prod(shape) // 2, 1), np.uint8)),
        ".absmax": torch.from_numpy(numbers.integers(0, 256, blocks, np.uint8)),
        ".nested_absmax": torch.full((-(-blocks // NESTED),), 0.02),
        ".nested_quant_map": create_dynamic_map(),
        ".quant_map": get_4bit_type("nf4", device="cpu"),
        ".quant_state.bitsandbytes__nf4": torch.frombuffer(bytearray(json.dumps(said).encode()), dtype=torch.uint8),
    }


def normal(shape: tuple[int, ...], numbers: np.random.Generator) -> torch.Tensor:
    """bf16 values of size 0.02, drawn a part at a time."""
    values = torch.empty(math.prod(shape), dtype=torch.bfloat16)
    for part in values.split(CHUNK):
        part.copy_(torch.from_numpy(numbers.standard_normal(len(part), np.float32)) * 0.02)
    return values.reshape(shape)


def write_base(out: Path, shape: Shape) -> Path:
    """A file for each layer and for each of the rest. A folder that is complete is left as it is."""
    if (out / "config.json").is_file():
        return out
    out.mkdir(parents=True, exist_ok=True)
    files: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, dims in shape.tensors().items():
        part = name.split(".")[2] if name.startswith("model.layers.") else name.split(".")[-2]
        files.setdefault(f"model-{part}.safetensors", {})[name] = dims
    numbers, homes = np.random.default_rng(0), {}
    for file, table in files.items():
        stored: dict[str, torch.Tensor] = {}
        for name, dims in table.items():
            if name.split(".")[-2] in LINEAR:
                stored |= {f"{name}{suffix}": tensor for suffix, tensor in nf4(dims, numbers).items()}
            else:
                stored[name] = normal(dims, numbers)
        save_file(stored, out / file, {"format": "pt"})
        homes |= dict.fromkeys(stored, file)
    (out / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": homes}), encoding="utf-8")
    quantised = {
        "quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True,
        "bnb_4bit_compute_dtype": "bfloat16", "bnb_4bit_quant_storage": "uint8",
    }  # fmt: skip
    (out / "config.json").write_text(json.dumps(shape.config() | {"quantization_config": quantised}), encoding="utf-8")
    return out


def verified(out: Path) -> str:
    """What samples of every tensor, computed again in float64, say; loading 16 GB is left out."""
    found = verify(out)
    return f"{found.verdict}: {next((check.detail for check in found.checks if check.name == 'recomputed'), '')}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "model-merging-headline-4bit")
    parser.add_argument("--shape", choices=SHAPES, default="llama3-8b")
    parser.add_argument("--limit-gib", type=float, default=2)
    parser.add_argument("-o", "--output", type=Path)
    args = parser.parse_args()
    shape, out, job = SHAPES[args.shape], args.work / "out", args.work / "job"
    base = write_base(args.work / "base", shape)
    packed = sum(file.stat().st_size for file in base.glob("*.safetensors"))
    refs = [f"{base}+{write_lora(args.work / f'lora{n}', base, shape, 16, seed=n)}" for n in (1, 2)]
    for folder in (out, job):
        shutil.rmtree(folder, ignore_errors=True)
    job.mkdir()
    parameters = {"recipe": recipe(base, refs), "out": str(out), "partial": str(out), "seed": 7}
    (job / "request.json").write_text(json.dumps({"kind": "merge", "parameters": parameters}), encoding="utf-8")
    command = [sys.executable, "-m", "mcp_server.workers.stream", str(job)]
    cost, peak = limited(args.limit_gib, command, args.work / "log")
    if cost.exit_code:
        print(cost.tail)
        return 1
    written = sum(file.stat().st_size for file in out.glob("*.safetensors"))
    text = "\n".join(
        [
            f"{datetime.datetime.now(datetime.UTC).date()}, {platform.machine()}, {os.cpu_count()} cores. Base: "
            f"{shape.parameters / 1e9:.2f} B parameters, linear layers in double-quantised NF4 ({packed / 1e9:.1f} GB, random "
            f"codes); output: {written / 1e9:.1f} GB of bf16.",
            "",
            "| what, memory limit | wall s | CPU s | anon MB | peak GiB with page cache | verify, by samples |",
            "|---|---|---|---|---|---|",
            f"| TIES of two LoRA adapters (r = 16) on the NF4 base, {args.limit_gib:g} GiB | {cost.wall:.0f} | {cost.cpu:.0f} | "
            f"{cost.anon / 1e6:.0f} | {peak / 2**30:.2f} | {verified(out)} |",
            "",
        ]
    )
    print(text)
    if args.output:
        args.output.write_text(text, encoding="utf-8")
    shutil.rmtree(args.work)
    return 0


if __name__ == "__main__":
    sys.exit(main())
