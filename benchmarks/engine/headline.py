#!/usr/bin/env python3
"""The promise, tested: TIES of two LoRA adapters on the full Llama-3-8B shape inside a 2 GiB memory cgroup, page cache included.

usage: headline.py [--work DIR] [--limit-gib 2] [--full] [--stock] [-o RESULTS.md]        needs root and 33 GB of disk

Copies the base under the same limit first, for scale. With `--full` also merges two full fine-tunes inside 12 GiB (one on disk
under two names: 49 GB of disk). With `--stock` also runs mergekit-yaml on two fine-tunes of a one-layer model with the same
embeddings (that alone is enough) inside 12 GiB. Exit status 77 where no cgroup can be made.
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


class Headline:
    """The runs, each a row of the table as soon as it ends."""

    def __init__(self, work: Path) -> None:
        self.work, self.out, self.log, self.shape = work, work / "out", work / "log", SHAPES["llama3-8b"]
        self.rows: list[str] = []
        self.base = write_model(work / "base", self.shape)

    def copy(self, limit_gib: float) -> Cost:
        self.out.mkdir(exist_ok=True)
        command = [sys.executable, "-c", COPY, str(self.base), str(self.out)]
        return self._run(f"synced copy of the base, {limit_gib:g} GiB", limit_gib, command)

    def of_adapters(self, limit_gib: float) -> Cost:
        refs = [f"{self.base}+{write_lora(self.work / f'lora{rank}', self.base, self.shape, rank)}" for rank in (16, 32)]
        return self._ours(f"ours: TIES of two LoRA adapters (r = 16, 32), {limit_gib:g} GiB", limit_gib, self.base, refs)

    def of_models(self, limit_gib: float) -> None:
        """Two full fine-tunes; one on disk, under two names, which the engine takes for two."""
        tune, other = write_model(self.work / "finetune", self.shape, 1), self.work / "finetune-again"
        other.unlink(missing_ok=True)
        other.symlink_to(tune, target_is_directory=True)
        self._ours(f"ours: TIES of two full fine-tunes, {limit_gib:g} GiB", limit_gib, self.base, [str(tune), str(other)])
        shutil.rmtree(tune)

    def one_layer(self, stock_gib: float, ours_gib: float) -> None:
        """Stock mergekit on one layer of 32 with the same embeddings, and ours on the same files."""
        shape = replace(self.shape, layers=1)
        base = write_model(self.work / "one-layer", shape)
        tunes = [write_model(self.work / f"one-layer{n}", shape, n) for n in (1, 2)]
        (self.work / "recipe.yml").write_text(recipe(base, [str(tune) for tune in tunes]), encoding="utf-8")
        stock = [str(Path(sys.executable).with_name("mergekit-yaml")), str(self.work / "recipe.yml"), str(self.out)]
        what = "TIES of two fine-tunes, **one layer** of 32"
        self._run(f"stock mergekit: {what}, {stock_gib:g} GiB", stock_gib, [*stock, "--no-copy-tokenizer"])
        self._ours(f"ours: {what}, {ours_gib:g} GiB", ours_gib, base, [str(tune) for tune in tunes])
        for folder in (base, *tunes):
            shutil.rmtree(folder)

    def _ours(self, name: str, limit_gib: float, base: Path, refs: list[str]) -> Cost:
        job = self.work / "job"
        shutil.rmtree(job, ignore_errors=True)
        job.mkdir()
        parameters = {"recipe": recipe(base, refs), "out": str(self.out), "partial": str(self.out), "seed": 7}
        (job / "request.json").write_text(json.dumps({"kind": "merge", "parameters": parameters}), encoding="utf-8")
        return self._run(name, limit_gib, [sys.executable, "-m", "mcp_server.workers.stream", str(job)])

    def _run(self, name: str, limit_gib: float, command: list[str]) -> Cost:
        cost, peak = limited(limit_gib, command, self.log)
        shutil.rmtree(self.out, ignore_errors=True)
        outcome = "killed: out of memory" if cost.exit_code in (-9, 137) else str(cost.exit_code)
        numbers = f"{cost.wall:.0f} | {cost.cpu:.0f} | {cost.anon / 1e6:.0f} | {outcome} | {peak / 2**30:.2f}"
        self.rows.append(f"| {name} | {numbers} |")
        print(self.rows[-1], cost.tail if cost.exit_code else "", flush=True)
        return cost


def recipe(base: Path, refs: list[str]) -> str:
    models = [{"model": ref, "parameters": {"weight": 0.5, "density": 0.5}} for ref in refs]
    return json.dumps({"merge_method": "ties", "base_model": str(base), "models": models, "dtype": "bfloat16"})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "model-merging-headline")
    parser.add_argument("--limit-gib", type=float, default=2)
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--stock", action="store_true")
    parser.add_argument("-o", "--output", type=Path)
    args = parser.parse_args()
    headline = Headline(args.work)
    copy = headline.copy(args.limit_gib)
    ours = headline.of_adapters(args.limit_gib)
    if args.full:
        headline.of_models(12)
    shutil.rmtree(headline.base)
    if args.stock:
        headline.one_layer(12, args.limit_gib)
    ratio = ours.wall / copy.wall
    today = datetime.datetime.now(datetime.UTC).date()
    text = "\n".join(
        [
            f"{today}, {platform.machine()}, {os.cpu_count()} cores, {headline.shape.parameters / 1e9:.2f} B parameters, bf16.",
            "",
            "| what, memory limit | wall s | CPU s | anon MB | exit | peak GiB with page cache |",
            "|---|---|---|---|---|---|",
            *headline.rows,
            "",
            f"Merging the adapters took {ratio:.2f} times as long as the copy. The limit counts page cache, as in a container.",
            "",
        ]
    )
    print(text)
    if args.output:
        args.output.write_text(text, encoding="utf-8")
    return 0 if ours.exit_code == 0 and ratio <= 3 else 1


if __name__ == "__main__":
    sys.exit(main())
