#!/usr/bin/env python3
"""The streaming engine beside stock mergekit-yaml: the same recipes, the same files, whole process against whole process.

usage: run.py [--quick] [--work DIR] [--only NAME...] [--repeat N] [--beside CHECKOUT] [-o RESULTS.md]

Two bf16 fine-tunes of a 0.85 B base (7 GB of disk in --work, kept for the next run), two LoRA adapters (r = 16, 32). Each row
runs ours `--repeat` times (the best counts) and stock once, with the inputs warm in the page cache. Then: how the cost grows with
sources, parameters and threads. Exit status 1 when a row misses its target; `--quick` uses 0.1 B, where start-up outweighs the
merge, and has no targets.

--beside compares with another checkout instead of stock mergekit, by turns, the least processor time of each counting: CHECKOUT
holds a version of this project and its `.venv`.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from synthetic import SHAPES, Shape, write_lora, write_model
from yardstick import synced_copy, warm

sys.path.append(str(Path(__file__).resolve().parents[1]))
from measure import Cost, run

MERGEKIT = [str(Path(sys.executable).with_name("mergekit-yaml"))]
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
SPARSE = {"weight": 0.5, "density": 0.5}


@dataclass(frozen=True)
class Row:
    name: str
    method: str
    target: float
    settings: dict[str, float]
    adapters: bool = False
    base: bool = True


ROWS = [
    Row("ties", "ties", 18, SPARSE),
    Row("ties of two LoRA adapters", "ties", 15, SPARSE, adapters=True),
    Row("dare_ties", "dare_ties", 7, SPARSE),
    Row("slerp", "slerp", 3, {}),
    Row("linear", "linear", 2, {"weight": 0.5}, base=False),
    Row("task_arithmetic", "task_arithmetic", 2, {"weight": 0.5}),
]
COPY_TARGET, ANON_TARGET = 1.8, 350e6


class Bench:
    def __init__(self, work: Path, shape: Shape, label: str) -> None:
        self.work, self.shape = work, shape
        self.data = work / label
        self.base = write_model(self.data / "base", shape)
        self.models = [write_model(self.data / f"finetune{n}", shape, n) for n in (1, 2)]
        self.loras = [write_lora(self.data / f"lora{rank}", self.base, shape, rank) for rank in (16, 32)]
        self.out, self.job = work / "out", work / "job"

    def recipe(self, row: Row, models: list[str] | None = None) -> str:
        refs = models or ([f"{self.base}+{lora}" for lora in self.loras] if row.adapters else [str(m) for m in self.models])
        body: dict[str, object] = {"merge_method": row.method, "dtype": "bfloat16"}
        if row.method == "slerp":
            refs, body["parameters"] = [refs[0], str(self.base)], {"t": 0.4}
        body["models"] = [{"model": ref, "parameters": row.settings} for ref in refs]
        return json.dumps(body | ({"base_model": str(self.base)} if row.base else {}))

    def ours(self, recipe: str, threads: int | None = None, python: str = sys.executable) -> Cost:
        self._clean()
        self.job.mkdir()
        parameters = {"recipe": recipe, "out": str(self.out), "partial": str(self.out), "seed": 7, "threads": threads}
        (self.job / "request.json").write_text(json.dumps({"kind": "merge", "parameters": parameters}), encoding="utf-8")
        return self._checked(run([python, "-P", "-m", "mcp_server.workers.stream", str(self.job)], self.work / "log"))

    def stock(self, recipe: str) -> Cost:
        self._clean()
        (self.work / "recipe.yml").write_text(recipe, encoding="utf-8")
        command = [*MERGEKIT, str(self.work / "recipe.yml"), str(self.out), "--no-copy-tokenizer", "--random-seed", "7"]
        if "lora" in recipe:
            command += ["--lora-merge-cache", str(self.work / "cache")]
        return self._checked(run(command, self.work / "log", OFFLINE))

    def _checked(self, cost: Cost) -> Cost:
        self._clean()
        if cost.exit_code:
            raise SystemExit(f"a run failed with {cost.exit_code}:\n{cost.tail}")
        return cost

    def _clean(self) -> None:
        for folder in (self.out, self.job, self.work / "cache"):
            shutil.rmtree(folder, ignore_errors=True)


def best(costs: list[Cost]) -> Cost:
    return min(costs, key=lambda cost: cost.wall)


def side_by_side(bench: Bench, rows: list[Row], repeat: int, targets: bool) -> tuple[list[str], bool]:
    inputs = [bench.base, *bench.models]
    warm(inputs)
    copy = min(synced_copy(bench.base, bench.work / "copy") for _ in range(2))
    lines = [
        f"A synced copy of the output ({2 * bench.shape.parameters / 1e9:.2f} GB): {copy:.1f} s.",
        "",
        "| merge | stock: wall s, CPU s, anon MB | ours: wall s, CPU s, anon MB | wall ratio | CPU ratio | ours ÷ copy |",
        "|---|---|---|---|---|---|",
    ]
    met = True
    for row in rows:
        recipe = bench.recipe(row)
        warm(inputs)
        stock = bench.stock(recipe)
        warm(inputs)
        ours = best([bench.ours(recipe) for _ in range(repeat)])
        ratio = stock.wall / ours.wall
        copies, bound = ours.wall / copy, COPY_TARGET if row.name == "ties" and targets else None
        met &= ratio >= row.target and ours.anon <= ANON_TARGET and (bound is None or copies <= bound)
        speed = f"{ratio:.1f}×" + (f" (≥ {row.target}×)" + _missed(ratio < row.target) if targets else "")
        beside_copy = f"{copies:.2f}" + (f" (≤ {bound})" + _missed(copies > bound) if bound else "")
        lines.append(f"| {row.name} | {_cost(stock)} | {_cost(ours)} | {speed} | {stock.cpu / ours.cpu:.1f}× | {beside_copy} |")
        print(lines[-1], file=sys.stderr, flush=True)
    return lines, met


def beside(bench: Bench, rows: list[Row], repeat: int, checkout: Path) -> list[str]:
    """Two versions of this engine on the same files. Processor time, because it leaves out what else the machine does."""
    pythons = [str(checkout / ".venv" / "bin" / "python"), sys.executable]
    commit = subprocess.run(["git", "-C", checkout, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
    lines = [f"| merge | {commit.stdout.strip()}: CPU s, anon MB | this: CPU s, anon MB | CPU ratio |", "|---|---|---|---|"]
    for row in rows:
        recipe = bench.recipe(row)
        warm([bench.base, *bench.models])
        runs: dict[str, list[Cost]] = {python: [] for python in pythons}
        for turn in range(repeat):
            for python in pythons if turn % 2 == 0 else pythons[::-1]:  # who comes second pays for the first one's dirty pages
                runs[python].append(bench.ours(recipe, python=python))
        before, now = (min(costs, key=lambda cost: cost.cpu) for costs in runs.values())
        shown = [f"{cost.cpu:.1f}, {cost.anon / 1e6:.0f}" for cost in (before, now)]
        lines.append(f"| {row.name} | {shown[0]} | {shown[1]} | {now.cpu / before.cpu:.2f} |")
        print(lines[-1], file=sys.stderr, flush=True)
    return lines


def growth(bench: Bench, small: Bench | None) -> list[str]:
    """Cost against sources, parameters and threads; ties throughout."""
    row = ROWS[0]
    lines = ["", "How ties grows (processor time leaves out what else the machine did):", ""]
    lines += ["| parameters | sources | threads | wall s | CPU s | anon MB |", "|---|---|---|---|---|---|"]
    links = bench.data / "links"
    links.mkdir(exist_ok=True)
    for sources in (2, 4, 8):
        models = []
        for n in range(sources):  # the same two fine-tunes under other names: distinct sources to the engine
            link = links / f"source{n}"
            if not link.is_symlink():
                link.symlink_to(bench.models[n % 2], target_is_directory=True)
            models.append(str(link))
        for threads in (1, 2) if sources == 2 else (2,):
            lines.append(_grown(bench, bench.recipe(row, models), sources, threads))
    lines += [_grown(small, small.recipe(row), 2, 2)] if small else []
    adapters = next(row for row in ROWS if row.adapters)
    lines += [_grown(sized, sized.recipe(adapters), 2, 2, " LoRA") for sized in (small, bench) if sized]
    return lines


def _grown(bench: Bench, recipe: str, sources: int, threads: int, kind: str = "") -> str:
    cost = bench.ours(recipe, threads)
    size = f"{bench.shape.parameters / 1e9:.2f} B"
    line = f"| {size} | {sources}{kind} | {threads} | {cost.wall:.1f} | {cost.cpu:.1f} | {cost.anon / 1e6:.0f} |"
    print(line, file=sys.stderr, flush=True)
    return line


def _missed(missed: bool) -> str:
    return " **missed**" if missed else ""


def _cost(cost: Cost) -> str:
    return f"{cost.wall:.1f}, {cost.cpu:.1f}, {cost.anon / 1e6:.0f}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "model-merging-bench")
    parser.add_argument("--only", nargs="*", choices=[row.name for row in ROWS])
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("--beside", type=Path, metavar="CHECKOUT")
    parser.add_argument("-o", "--output", type=Path)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    label = "0.1b" if args.quick else "0.85b"
    bench = Bench(args.work, SHAPES[label], label)
    small = None if args.quick else Bench(args.work, SHAPES["0.1b"], "0.1b")
    rows = [row for row in ROWS if not args.only or row.name in args.only]
    if args.beside:
        lines, met = beside(bench, rows, args.repeat, args.beside.resolve()), True
    else:
        lines, met = side_by_side(bench, rows, args.repeat, targets=not args.quick)
    if not args.only and not args.beside:
        lines += growth(bench, small)
    today = datetime.datetime.now(datetime.UTC).date()
    head = (
        f"{today}, {platform.machine()}, {os.cpu_count()} cores, {platform.system()} {platform.release()}, {label.upper()} bf16"
    )
    text = "\n".join([head, "", *lines, ""])
    print(text)
    if args.output:
        args.output.write_text(text, encoding="utf-8")
    return 0 if met or args.quick else 1


if __name__ == "__main__":
    sys.exit(main())
