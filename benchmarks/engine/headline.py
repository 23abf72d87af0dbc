#!/usr/bin/env python3
"""The promise, tested: TIES of two LoRA adapters on the full Llama-3-8B shape inside a 2 GiB memory cgroup, page cache included.

usage: headline.py [--work DIR] [--limit-gib 2] [--keep] [-o RESULTS.md]        needs root and 33 GB of disk

Copies the base under the same limit first, for scale. With `--stock` also runs mergekit-yaml on two fine-tunes of a one-layer
model with the same embeddings (that alone is enough) inside 12 GiB. Exit status 77 where no cgroup can be made.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from synthetic import SHAPES, write_lora, write_model

sys.path.append(str(Path(__file__).resolve().parents[1]))
from measure import Cost, run

V2, V1 = Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/memory")


@contextmanager
def memory_limit(limit: int) -> Iterator[Path]:
    """A cgroup of its own (version 1 or 2); yields its folder."""
    second = (V2 / "cgroup.controllers").is_file() and "memory" in (V2 / "cgroup.controllers").read_text(encoding="utf-8")
    group = (V2 if second else V1) / f"merge-limit-{os.getpid()}"
    try:
        if second:
            (V2 / "cgroup.subtree_control").write_text("+memory", encoding="utf-8")
        group.mkdir()
        (group / ("memory.max" if second else "memory.limit_in_bytes")).write_text(str(limit), encoding="utf-8")
    except OSError as error:
        print(f"cannot make a memory cgroup here: {error}", file=sys.stderr)
        raise SystemExit(77) from error
    try:
        yield group
    finally:
        for _ in range(50):
            try:
                group.rmdir()
                break
            except OSError:
                time.sleep(0.1)


def inside(group: Path, command: list[str]) -> list[str]:
    return ["sh", "-c", 'echo $$ > "$0/cgroup.procs" && exec "$@"', str(group), *command]


def limited(limit_gib: float, command: list[str], log: Path) -> tuple[Cost, int]:
    """(cost, the cgroup's own peak in bytes, page cache included)."""
    with memory_limit(int(limit_gib * 2**30)) as group:
        cost = run(inside(group, command), log, {"HF_HUB_OFFLINE": "1"})
        peaks = [group / name for name in ("memory.peak", "memory.max_usage_in_bytes") if (group / name).is_file()]
        return cost, int(peaks[0].read_text(encoding="utf-8")) if peaks else 0


COPY = """
import os, sys
from pathlib import Path
for path in sorted(Path(sys.argv[1]).glob("*.safetensors")):
    with path.open("rb", buffering=0) as source, (Path(sys.argv[2]) / path.name).open("wb", buffering=0) as target:
        while block := source.read(1 << 22):
            target.write(block)
        os.fsync(target.fileno())
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "model-merging-headline")
    parser.add_argument("--limit-gib", type=float, default=2)
    parser.add_argument("--stock", action="store_true")
    parser.add_argument("--keep", action="store_true")
    parser.add_argument("-o", "--output", type=Path)
    args = parser.parse_args()
    work, shape = args.work, SHAPES["llama3-8b"]
    base = write_model(work / "base", shape)
    loras = [write_lora(work / f"lora{rank}", base, shape, rank) for rank in (16, 32)]
    out, job, log = work / "out", work / "job", work / "log"
    lines = []

    out.mkdir(exist_ok=True)
    copy, _ = limited(args.limit_gib, [sys.executable, "-c", COPY, str(base), str(out)], log)
    shutil.rmtree(out)
    lines.append(f"| synced copy of the base, {args.limit_gib:g} GiB | {_line(copy)} | |")
    print(lines[-1], flush=True)

    models = [{"model": f"{base}+{lora}", "parameters": {"weight": 0.5, "density": 0.5}} for lora in loras]
    recipe = json.dumps({"merge_method": "ties", "base_model": str(base), "models": models, "dtype": "bfloat16"})
    shutil.rmtree(job, ignore_errors=True)
    job.mkdir()
    parameters = {"recipe": recipe, "out": str(out), "partial": str(out), "seed": 7}
    (job / "request.json").write_text(json.dumps({"kind": "merge", "parameters": parameters}), encoding="utf-8")
    ours, peak = limited(args.limit_gib, [sys.executable, "-m", "mcp_server.workers.stream", str(job)], log)
    shutil.rmtree(out, ignore_errors=True)
    ratio = ours.wall / copy.wall
    lines.append(f"| ours: TIES of two LoRA adapters (r = 16, 32), {args.limit_gib:g} GiB | {_line(ours)} | {peak / 2**30:.2f} |")
    print(lines[-1], ours.tail if ours.exit_code else "", flush=True)
    if not args.keep:
        shutil.rmtree(work / "base")

    if args.stock:
        one = replace(shape, layers=1)
        small = write_model(work / "one-layer", one)
        tunes = [write_model(work / f"one-layer{n}", one, n) for n in (1, 2)]
        entries = [{"model": str(tune), "parameters": {"weight": 0.5, "density": 0.5}} for tune in tunes]
        text = json.dumps({"merge_method": "ties", "base_model": str(small), "models": entries, "dtype": "bfloat16"})
        (work / "recipe.yml").write_text(text, encoding="utf-8")
        command = [
            str(Path(sys.executable).with_name("mergekit-yaml")),
            str(work / "recipe.yml"),
            str(out),
            "--no-copy-tokenizer",
        ]
        stock, peak = limited(12, command, log)
        lines.append(f"| stock mergekit: TIES of two fine-tunes, one layer of 32, 12 GiB | {_line(stock)} | {peak / 2**30:.2f} |")
        print(lines[-1], flush=True)
        for folder in (out, small, *tunes):
            shutil.rmtree(folder, ignore_errors=True)

    today = datetime.datetime.now(datetime.UTC).date()
    text = "\n".join(
        [
            f"{today}, {platform.machine()}, {os.cpu_count()} cores, {shape.parameters / 1e9:.2f} B parameters, bf16.",
            "",
            "| what, memory limit | wall s | CPU s | anon MB | exit | peak GiB with page cache |",
            "|---|---|---|---|---|---|",
            *lines,
            "",
            f"The merge took {ratio:.2f} times as long as the copy.",
            "",
        ]
    )
    print(text)
    if args.output:
        args.output.write_text(text, encoding="utf-8")
    return 0 if ours.exit_code == 0 and ratio <= 3 else 1


def _line(cost: Cost) -> str:
    outcome = "killed: out of memory" if cost.exit_code in (-9, 137) else str(cost.exit_code)
    return f"{cost.wall:.0f} | {cost.cpu:.0f} | {cost.anon / 1e6:.0f} | {outcome}"


if __name__ == "__main__":
    sys.exit(main())
