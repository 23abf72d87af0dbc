#!/usr/bin/env python3
"""The promise, whole: an 8 B base and two adapters, merged, verified, measured and reported inside one memory cgroup.

usage: evidence_8b.py TOKENIZER [--work DIR] [--limit-gib 12] [--prompts 24] [-o RESULTS.md]     needs root and 34 GB of disk

TOKENIZER is the folder of a small model whose tokenizer and chat template are taken (the demo's base). The weights are random,
of Llama-3-8B's full shape, so replies are nonsense: one token in 32 ends a reply, which gives replies of a length that real
ones have. Embeddings are 64 times as large as drawn, so that the next token depends on the last one, and the head leaves out
what the tokenizer does not know. Base, both sources and merge are measured on `task_api_tools`, `taskmaster_persona` and
`perplexity`, nothing remembered. The limit counts page cache, as in a container. Exit status 77 where no cgroup can be made.
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
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

sys.path.append(str(Path(__file__).resolve().parents[1] / "engine"))

from headline import V2, inside, memory_limit, recipe
from synthetic import SHAPES, write_lora, write_model

ENDS_EVERY = 32
SUITES = ("task_api_tools", "taskmaster_persona", "perplexity")
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


def models(work: Path, tokenizer: Path) -> tuple[Path, dict[str, str]]:
    """The base, with a tokenizer and many tokens that end a reply, and two adapters on it."""
    shape = SHAPES["llama3-8b"]
    base = write_model(work / "base", shape)
    for name in TOKENIZER:
        shutil.copy(tokenizer / name, base / name)
    if not (base / "lively").exists():
        known = json.loads((tokenizer / "config.json").read_text(encoding="utf-8"))["vocab_size"]
        _stored(base, "model.embed_tokens.weight")[:] += 6 << 7  # bf16: times 64
        _stored(base, "lm_head.weight")[known * shape.hidden :] = 0
        (base / "lively").touch()
    own = json.loads((tokenizer / "generation_config.json").read_text(encoding="utf-8"))
    ends = sorted({own["eos_token_id"], *range(ENDS_EVERY, shape.vocabulary, ENDS_EVERY)})
    (base / "generation_config.json").write_text(json.dumps(own | {"eos_token_id": ends}), encoding="utf-8")
    return base, {f"rank{rank}": str(write_lora(work / f"lora{rank}", base, shape, rank)) for rank in (16, 32)}


def _stored(folder: Path, name: str) -> np.memmap[Any, np.dtype[np.uint16]]:
    """A bf16 tensor's bytes in its file, to be changed in place."""
    shard = folder / json.loads((folder / "model.safetensors.index.json").read_text(encoding="utf-8"))["weight_map"][name]
    with shard.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        begin, end = json.loads(file.read(length))[name]["data_offsets"]
    return np.memmap(shard, np.uint16, "r+", 8 + length + begin, ((end - begin) // 2,))


@dataclass(frozen=True)
class Clock:
    group: Path | None
    """A second cgroup that a process must join to be counted."""
    seconds: Callable[[], float]


class Steps:
    """Commands, one after the other under one limit; a row of the table each."""

    def __init__(self, group: Path, clock: Clock, work: Path) -> None:
        self.group, self.clock, self.work = group, clock, work
        self.rows: list[str] = []
        self.env = {**os.environ, "HF_HUB_OFFLINE": "1", "MODEL_MERGING_HOME": str(work / "home")}

    def step(self, name: str, *arguments: object) -> dict[str, Any]:
        """Run the command line with `--json`; its result. Raises SystemExit with the end of what it said when it fails."""
        before, started, done = self.clock.seconds(), time.monotonic(), threading.Event()
        peak = 0

        def watch() -> None:
            nonlocal peak
            while not done.wait(0.05):
                peak = max(peak, _resident(self.group))

        watcher = threading.Thread(target=watch)
        watcher.start()
        tool = str(Path(sys.executable).with_name("model-merging"))
        command = inside(self.group, [tool, *map(str, arguments), "--json"])
        if self.clock.group:
            command = ["sh", "-c", 'echo $$ > "$0/cgroup.procs" && exec "$@"', str(self.clock.group), *command]
        with (self.work / "log").open("wb") as log:
            ran = subprocess.run(command, env=self.env, stdout=subprocess.PIPE, stderr=log, check=False)
        done.set()
        watcher.join()
        wall, cpu = time.monotonic() - started, self.clock.seconds() - before
        row = f"| {name} | {wall:.0f} | {cpu:.0f} | {peak / 2**30:.2f} | {ran.returncode} |"
        self.rows.append(row)
        print(row, flush=True)
        if ran.returncode not in (0, 1):
            raise SystemExit((self.work / "log").read_text(encoding="utf-8", errors="replace")[-2000:])
        found: dict[str, Any] = json.loads(ran.stdout)
        return found


def _resident(group: Path) -> int:
    """Anonymous bytes of the group: what the kernel cannot take back."""
    found = dict(line.split() for line in (group / "memory.stat").read_text(encoding="utf-8").splitlines())
    return int(found.get("anon") or found["rss"])


@contextmanager
def clock(group: Path) -> Iterator[Clock]:
    """Processor time of the group: its own figure in version 2, a second group of the same name in version 1."""
    usage = group / "cpu.stat"
    if usage.is_file():
        yield Clock(None, lambda: int(dict(line.split() for line in usage.read_text().splitlines())["usage_usec"]) / 1e6)
        return
    beside = V2 / "cpuacct" / group.name
    beside.mkdir()
    try:
        yield Clock(beside, lambda: int((beside / "cpuacct.usage").read_text()) / 1e9)
    finally:
        beside.rmdir()


def estimated(steps: Steps, recipe_file: Path, limit: float) -> list[str]:
    """What was said before: peak and seconds of each step."""
    found = steps.step("estimate", "estimate", recipe_file, "--ram-gib", limit)
    told = {"merge": found["engines"][found["recommended"]], "verify": found["verify"], "evaluate": found["evaluate"]}
    return [
        f"| {name} | {cost['peak_anon_bytes'] / 2**30:.2f} | {cost['seconds']['low']:.0f} to {cost['seconds']['high']:.0f} | "
        f"{cost['settings'].get('weights', '')} |"
        for name, cost in told.items()
    ]


def measured(work: Path, tokenizer: Path, limit: float, prompts: int) -> list[str]:
    base, sources = models(work, tokenizer)
    out, file = work / "out", work / "recipe.yml"
    for folder in (out, work / "home"):
        shutil.rmtree(folder, ignore_errors=True)
    file.write_text(recipe(base, [f"{base}+{ref}" for ref in sources.values()]), encoding="utf-8")
    suites = [word for suite in SUITES for word in ("--suite", suite)]
    with memory_limit(int(limit * 2**30)) as group, clock(group) as spent:
        steps = Steps(group, spent, work)
        said = estimated(steps, file, limit)
        steps.step("merge", "merge", file, out)
        steps.step("verify", "verify", out)
        result = steps.step("evaluate", "evaluate", out, *suites, "--limit", prompts, "--split", "dev")
        steps.step("report", "report", out, "-o", work / "report.html")
    shutil.rmtree(out)
    heading = ["", "Estimated:", "", "| step | anonymous GiB, peak | seconds | weights |", "|---|---|---|---|"]
    return [*steps.rows, *heading, *said, "", f"Measured as {result['numerics']}."]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "model-merging-evidence-8b")
    parser.add_argument("--limit-gib", type=float, default=12)
    parser.add_argument("--prompts", type=int, default=24)
    parser.add_argument("-o", "--output", type=Path)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    rows = measured(args.work, args.tokenizer, args.limit_gib, args.prompts)
    today = datetime.datetime.now(datetime.UTC).date()
    text = "\n".join(
        [
            f"{today}, {platform.machine()}, {os.cpu_count()} cores, {args.limit_gib:g} GiB, {args.prompts} prompts a suite.",
            "",
            "| step | wall s | CPU s | anonymous GiB, peak | exit |",
            "|---|---|---|---|---|",
            *rows,
            "",
        ]
    )
    print(text)
    if args.output:
        args.output.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
