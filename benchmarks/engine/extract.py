#!/usr/bin/env python3
"""`model-merging extract` beside mergekit-extract-lora: time, memory and error on one synthetic pair, at one rank.

usage: extract.py [--shape 0.1b|0.85b] [--rank N] [--work DIR] [--ours]

The pair is bf16 with random weights; the fine-tune's change is random, of full rank: the worst case for any rank. Errors are
computed here, in float64, from the adapters that were written: ‖W₁ − W₀ − B·A‖ over ‖W₁ − W₀‖, over all matrices that the
adapter has. `--ours` leaves mergekit out. Ours is the job's worker, which is where the work is done.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
import tempfile
from pathlib import Path

from synthetic import SHAPES, write_model

sys.path.append(str(Path(__file__).resolve().parents[1]))
from measure import Cost, run

from mcp_server.formats.checkpoint import open_checkpoint
from mcp_server.formats.safetensors import read_header
from mcp_server.formats.tensors import stored_tensors
from mcp_server.recompute.reading import read_rows
from mcp_server.steps.extract import extraction

OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}


def error_of(adapter: Path, base: Path, tuned: Path) -> float:
    """Relative error of the matrices in the adapter."""
    file = adapter / "adapter_model.safetensors"
    stored = stored_tensors(file, read_header(file))
    config = json.loads((adapter / "adapter_config.json").read_text("utf-8"))
    models = [open_checkpoint(str(folder)).tensors for folder in (base, tuned)]
    lost = whole = 0.0
    for key, part in stored.items():
        if not key.endswith("lora_A.weight"):
            continue
        module = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
        rank = part.shape[0]
        own = (config.get("rank_pattern") or {}).get(module, config["r"])
        alpha = (config.get("alpha_pattern") or {}).get(module, config["lora_alpha"])
        b = stored[key.replace("lora_A", "lora_B")]
        product = alpha / own * read_rows(b, 0, b.shape[0]) @ read_rows(part, 0, rank)
        before, after = (tensors[f"{module}.weight"] for tensors in models)
        delta = read_rows(after, 0, after.shape[0]) - read_rows(before, 0, before.shape[0])
        lost, whole = lost + float(((delta - product) ** 2).sum()), whole + float((delta**2).sum())
    return math.sqrt(lost / whole)


def row(name: str, cost: Cost, out: Path, base: Path, tuned: Path) -> str:
    if cost.exit_code:
        sys.exit(f"{name} ended with {cost.exit_code}: {cost.tail}")
    factors = sum(key.endswith("lora_A.weight") for key in read_header(out / "adapter_model.safetensors").tensors)
    return f"| {name} | {cost.wall:.1f} | {cost.cpu:.1f} | {cost.anon / 1e6:.0f} | {error_of(out, base, tuned):.4f} | {factors} |"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--shape", choices=[*SHAPES], default="0.1b")
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--ours", action="store_true")
    given = parser.parse_args()
    work = given.work or Path(tempfile.mkdtemp(prefix="extract-"))
    base, tuned = write_model(work / "base", SHAPES[given.shape]), write_model(work / "tuned", SHAPES[given.shape], 1)
    rank, outs = str(given.rank), (work / "ours", work / "theirs")
    for out in outs:
        shutil.rmtree(out, ignore_errors=True)
    job = work / "job"
    shutil.rmtree(job, ignore_errors=True)
    job.mkdir()
    asked = extraction(str(base), str(tuned), rank=given.rank, whole=[], dtype="bfloat16")
    asked |= {"out": str(outs[0]), "partial": str(outs[0])}
    (job / "request.json").write_text(json.dumps({"kind": "merge", "parameters": asked}), encoding="utf-8")
    tools = [[sys.executable, "-m", "mcp_server.workers.stream", str(job)]]
    if not given.ours:
        command = [str(Path(sys.executable).with_name("mergekit-extract-lora")), "--model", str(tuned), "--base-model", str(base)]
        tools.append([*command, "--out-path", str(outs[1]), "--max-rank", rank, "--skip-undecomposable", "--embed-lora"])
    print(f"{given.shape}, rank {rank}\n\n| | wall s | processor s | peak anon MB | relative error | matrices |")
    print("|---|---|---|---|---|---|", flush=True)
    for name, command, out in zip(("model-merging extract", "mergekit-extract-lora"), tools, outs, strict=False):
        print(row(name, run(command, work / "log", OFFLINE), out, base, tuned), flush=True)


if __name__ == "__main__":
    main()
