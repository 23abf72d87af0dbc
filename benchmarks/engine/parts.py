#!/usr/bin/env python3
"""One merge split by output file over processes of this machine or a Ray cluster on it: seconds, and whether the bytes are equal.

usage: parts.py [--work DIR] [--layers 32] [--counts 1 2 4] [--ray]        needs 8 GB of disk; --ray the extra `ray`

TIES of two LoRA adapters (ranks 16 and 32) on a model with random weights, written in files of 400 MB. The first row is one
process with a thread for every processor; a worker has its share of them, a Ray node one. Starting a cluster is not counted.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

from headline import recipe
from synthetic import SHAPES, write_lora, write_model

sys.path.append(str(Path(__file__).resolve().parents[1]))
from measure import run


@contextmanager
def cluster(nodes: int) -> Iterator[list[str]]:
    """A Ray cluster of so many nodes with one processor each; yields the options that merge on it."""
    from ray.cluster_utils import Cluster

    started = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        for _ in range(nodes - 1):
            started.add_node(num_cpus=1)
        started.wait_for_nodes()
        yield ["--ray", started.address]
    finally:
        started.shutdown()


def digests(out: Path) -> dict[str, str]:
    """SHA-256 of every file that holds weights."""
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(out.glob("*.safetensors"))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "model-merging-parts")
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--counts", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--ray", action="store_true")
    given = parser.parse_args()
    shape = replace(SHAPES["0.85b"], layers=given.layers)
    base = write_model(given.work / "base", shape)
    refs = [f"{base}+{write_lora(given.work / f'lora{rank}', base, shape, rank)}" for rank in (16, 32)]
    file, out = given.work / "recipe.yml", given.work / "out"
    file.write_text(recipe(base, refs), encoding="utf-8")
    ways: list[tuple[str, AbstractContextManager[list[str]]]] = [("one process", nullcontext([]))]
    ways += [(f"{count} workers", nullcontext(["--workers", str(count)])) for count in given.counts]
    ways += [(f"Ray, {count} nodes", cluster(count)) for count in given.counts if given.ray]
    tool = str(Path(sys.executable).with_name("model-merging"))
    expected: dict[str, str] = {}
    print(f"{shape.parameters / 1e9:.2f} B parameters, {os.cpu_count()} processors, load {os.getloadavg()[0]:.1f}\n")
    print("| way | wall s | CPU s of its own processes | files | bytes as in one process |\n|---|---|---|---|---|", flush=True)
    for name, way in ways:
        with way as options:
            shutil.rmtree(out, ignore_errors=True)
            os.sync()
            time.sleep(2)
            cost = run([tool, "merge", str(file), str(out), "--shard-size", "400MB", *options], given.work / "log")
        if cost.exit_code:
            raise SystemExit(cost.tail)
        found = digests(out)
        expected = expected or found
        cpu = "" if "Ray" in name else f"{cost.cpu:.0f}"
        print(f"| {name} | {cost.wall:.1f} | {cpu} | {len(found)} | {'yes' if found == expected else 'NO'} |", flush=True)
    shutil.rmtree(out)


if __name__ == "__main__":
    main()
