"""The search of `sweep --minutes` against the shortlist alone, on the same minutes, over several seeds.

usage: search_against_grid.py PLAN FOLDER [--minutes 4] [--seeds 3] [--limit 24] [--data FILE ...]

Both are the product's own sweep with its racing (few prompts first, more for what may still win), its choice on dev and its one
measurement on test. They differ in one thing: after half of the time the search proposes, while the grid goes on as it was.
Each seed puts plan and shortlist in another order, the same for both, because in its own order the best that is known is the
first candidate. Both of a seed run at the same time, each on its half of the processors, so that they share what else the machine
does. Every run has a store of its own, in which base and sources have answered already, so PLAN must name its base by folder.
A run that is finished is not run again, so the command can be interrupted; it prints a table of what is finished.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

HOME = "MODEL_MERGING_HOME"
SUITES = ["task_api_tools", "taskmaster_persona", "perplexity"]
"""Of the running example; with `--data` these files and perplexity instead."""


def one(kind: str, seed: int, folder: Path) -> None:
    """The worker in this process, its candidates shuffled, and for `grid` without proposals."""
    from mcp_server.workers import sweep
    from mcp_server.workers.protocol import run_worker
    from mcp_server.workers.sweeping import budget

    listed = sweep.from_grid

    def shuffled(*arguments: Any) -> Any:
        candidates = listed(*arguments)
        random.Random(seed).shuffle(candidates)
        return candidates

    sweep.from_grid = shuffled  # type: ignore[assignment]
    if kind == "grid":
        budget.LISTED_SHARE = 1.0  # type: ignore[misc]
        budget.Budget._proposed = lambda *_: None  # type: ignore[method-assign]
    sys.argv = [sys.argv[0], str(folder)]
    sys.exit(run_worker(sweep.main))


def started(kind: str, seed: int, given: argparse.Namespace, known: Path, processors: set[int]) -> subprocess.Popen[bytes] | None:
    """A run on these processors alone; None where it is finished."""
    folder = given.folder / f"{kind}-{seed}"
    if (folder / "out" / "sweep.json").is_file():
        return None
    if not (folder / "home").is_dir():
        shutil.copytree(known, folder / "home")
    request = {
        "plan": str(given.plan), "out": str(folder / "out"), **asked(given), "minutes": given.minutes, "limit": given.limit,
        "seed": seed,
    }  # fmt: skip
    (folder / "request.json").write_text(json.dumps({"kind": "sweep", "parameters": request}), encoding="utf-8")
    command = [sys.executable, str(Path(__file__).resolve()), "--one", kind, str(seed), str(folder)]
    environment = {**os.environ, HOME: str(folder / "home"), "OMP_NUM_THREADS": str(len(processors))}
    running = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    os.sched_setaffinity(running.pid, processors)
    return running


def pair(seed: int, given: argparse.Namespace, known: Path) -> dict[str, dict[str, Any]]:
    """What grid and search found with this seed."""
    processors = sorted(os.sched_getaffinity(0))
    halves = {"grid": set(processors[::2]), "search": set(processors[1::2] or processors)}
    running = {kind: started(kind, seed, given, known, half) for kind, half in halves.items()}
    for kind, process in running.items():
        if process is not None and process.wait() != 0:
            raise SystemExit(f"{kind} with seed {seed} ended with {process.returncode}; see its messages above")
    return {
        kind: json.loads((given.folder / f"{kind}-{seed}" / "out" / "sweep.json").read_text(encoding="utf-8")) for kind in running
    }


def asked(given: argparse.Namespace) -> dict[str, list[str]]:
    if not given.data:
        return {"suites": SUITES}
    return {"suites": SUITES[-1:], "data": [str(Path(file).resolve()) for file in given.data]}


def answered(given: argparse.Namespace) -> Path:
    """A store in which base and sources have answered both splits."""
    home = given.folder / "known"
    done = home / "done"
    if not done.is_file():
        from mcp_server.steps.scenario import read_plan
        from mcp_server.steps.sweep import shortlist
        from mcp_server.steps.sweep.place import lineage_of_plan

        plan = read_plan(given.plan)
        lineage = lineage_of_plan(plan, given.plan.parent, shortlist(plan, given.plan.parent)[0].recipe)
        for split in ("dev", "test"):
            folder = given.folder / f"sources-{split}"
            folder.mkdir(parents=True, exist_ok=True)
            parameters = {
                "base": lineage.base,
                "sources": lineage.sources,
                **asked(given),
                "limit": given.limit,
                "split": split,
            }
            (folder / "request.json").write_text(json.dumps({"kind": "evaluate", "parameters": parameters}), encoding="utf-8")
            command = [sys.executable, "-P", "-m", "mcp_server.workers.evaluate", str(folder)]
            subprocess.run(command, check=True, env={**os.environ, HOME: str(home)}, stdout=subprocess.DEVNULL)
        done.touch()
    return home


def least(gains: dict[str, float | None]) -> float:
    return min((gain for gain in gains.values() if gain is not None), default=float("nan"))


def row(kind: str, seed: int, found: dict[str, Any]) -> str:
    winner = next((c for c in found["candidates"] if c["name"] == found["winner"]), None)
    whole = sum(c["stopped"] is None for c in found["candidates"])
    tried = f"{len(found['candidates'])}, {whole} to the end"
    if winner is None or found["test"] is None:
        return f"| {seed} | {kind} | {tried} | none | | | {found['seconds'] / 60:.1f} |"
    skills = {name: c["gain_recovered"] for name, c in found["test"]["capabilities"].items() if "perplexity" not in c["metric"]}
    ratio = found["test"]["perplexity_ratio"]
    return (
        f"| {seed} | {kind} | {tried} | {winner['name']} | {least(winner['gains']):.0%} | "
        f"{least(skills):.0%}, {ratio:.2f} | {found['seconds'] / 60:.1f} |"
    )


def main() -> None:
    if sys.argv[1:2] == ["--one"]:
        one(sys.argv[2], int(sys.argv[3]), Path(sys.argv[4]))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plan", type=lambda text: Path(text).resolve())
    parser.add_argument("folder", type=lambda text: Path(text).resolve())
    parser.add_argument("--minutes", type=float, default=4.0)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--limit", type=int, default=24)
    parser.add_argument("--data", action="append", help="a file of prompts, as for evaluate --data; repeat it")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    known = answered(given)
    print("| seed | | candidates | winner | least gain, dev | least gain and perplexity ÷ best, test | minutes |")
    print("|---|---|---|---|---|---|---|", flush=True)
    for seed in range(given.seeds):
        for kind, found in pair(seed, given, known).items():
            print(row(kind, seed, found), flush=True)


if __name__ == "__main__":
    main()
