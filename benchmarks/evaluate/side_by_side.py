"""The same evaluation by two trees on one machine: CPU seconds, and how many replies are identical.

usage: side_by_side.py OLD_TREE NEW_TREE BASE MERGED NAME=ADAPTER... [--limit N] [--split dev|test]

Each tree runs its evaluate worker with a store of its own, so that nothing is remembered, on a copy of the merge without its
records, whose form differs from version to version. CPU seconds are those of the worker's process, start and imports included.
Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RECORDS = {
    "merge_provenance.json", "mergekit_config.yml", "verification.json", "evaluation.json", "evaluations.jsonl", "replies.json",
}  # fmt: skip
SUITES = ["taskmaster_persona", "task_api_tools", "perplexity"]


def run(tree: Path, folder: Path, parameters: dict[str, object]) -> dict[str, object]:
    """One worker: its wall and CPU seconds and what every model answered."""
    folder.mkdir()
    out = folder / "merged"
    out.mkdir()
    for file in Path(str(parameters["out"])).iterdir():
        if file.suffix != ".md" and file.name not in RECORDS:
            (out / file.name).symlink_to(file)
    parameters = {**parameters, "out": str(out)}
    (folder / "request.json").write_text(json.dumps({"kind": "evaluate", "parameters": parameters}), encoding="utf-8")
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    environment = {**os.environ, "PYTHONPATH": str(tree), "MODEL_MERGING_HOME": str(folder / "home")}
    command = [sys.executable, "-P", "-m", "mcp_server.workers.evaluate", str(folder)]
    subprocess.run(command, check=True, env=environment, cwd=tree, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    samples = json.loads((folder / "evaluation_samples.json").read_text(encoding="utf-8"))
    replies = {(suite, label): one["replies"] for suite, by in samples.items() for label, one in by.items() if one["replies"]}
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    return {
        "wall": round(time.monotonic() - start, 1),
        "cpu": round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 1),
        "replies": replies,
        "figures": {name: [c["base"], *c["sources"].values(), c["merged"]] for name, c in result["capabilities"].items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("old", "new", "base", "merged"):
        parser.add_argument(name, type=Path)
    parser.add_argument("sources", nargs="+", help="NAME=ADAPTER")
    parser.add_argument("--limit", type=int, default=24)
    parser.add_argument("--split", default="test")
    given = parser.parse_args()
    sources = {
        name: f"{given.base.resolve()}+{Path(path).resolve()}" for name, _, path in (s.partition("=") for s in given.sources)
    }
    parameters = {
        "out": str(given.merged.resolve()), "base": str(given.base.resolve()), "sources": sources, "suites": SUITES,
        "limit": given.limit, "split": given.split,
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as place:
        old = run(given.old.resolve(), Path(place) / "old", parameters)
        new = run(given.new.resolve(), Path(place) / "new", parameters)
    pairs = [(a, b) for key, texts in old["replies"].items() for a, b in zip(texts, new["replies"][key], strict=True)]
    same = sum(a == b for a, b in pairs)
    table = {
        "cpu_seconds": {"old": old["cpu"], "new": new["cpu"], "times_less": round(old["cpu"] / new["cpu"], 2)},
        "wall_seconds": {"old": old["wall"], "new": new["wall"]},
        "replies": {"all": len(pairs), "identical": same, "share": round(same / len(pairs), 4)},
        "figures": {"old": old["figures"], "new": new["figures"]},
        "machine": {"processors": len(os.sched_getaffinity(0)), "load": os.getloadavg()[0]},
    }
    print(json.dumps(table, indent=1))


if __name__ == "__main__":
    main()
