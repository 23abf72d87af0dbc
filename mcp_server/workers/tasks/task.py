"""One unit of a sweep: run worker modules one after the other in processes of their own, and bring back the last one's result.

A task is plain data, so that it can travel; it names folders, so a cluster needs a file system that all its nodes see. Every
process writes into the task's folder, and a task that runs again after its machine died finds what is already whole there. A
process dies with whoever started it, so that a task that runs again elsewhere has its folder to itself.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mcp_server.errors import MergingError, RunFailed, from_dict
from mcp_server.formats.provenance import not_ours
from mcp_server.system.files import write_json
from mcp_server.system.outputs import replace_folder, require_folder
from mcp_server.workers.tasks.resident import Resident, child_environment

DONE = "task.json"


@dataclass(frozen=True)
class Step:
    """One worker process, `python -m module FOLDER`. `output` is a folder that the worker fills as `partial` and that is renamed
    when it is whole; the process's files lie beside it as `OUTPUT.step`, so that another task with this step finds it done."""

    module: str
    parameters: dict[str, Any]
    output: str | None = None


@dataclass(frozen=True)
class Task:
    """`cpus`, `memory_bytes` and `gpus` are what the task declares to a scheduler; `folder` holds its files, `roots` are the
    folders under which its steps may read (null: everywhere)."""

    name: str
    folder: str
    steps: list[Step]
    cpus: float = 1
    gpus: float = 0
    memory_bytes: int = 0
    remove: list[str] = field(default_factory=list)
    roots: list[str] | None = None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def from_plain(data: dict[str, Any]) -> Task:
    return Task(**{**data, "steps": [Step(**step) for step in data["steps"]]})


def places(task: Task) -> list[Path]:
    """Where each step's process has its files."""
    return [
        Path(step.output).with_name(f"{Path(step.output).name}.step") if step.output else Path(task.folder) / f"step{number}"
        for number, step in enumerate(task.steps)
    ]


def run_task(data: dict[str, Any], environment: dict[str, str] | None = None, resident: Resident | None = None) -> dict[str, Any]:
    """Run the steps; returns {"result": the last step's} or {"error": …}. A task that succeeded answers from its file; one that
    failed runs again, because what was in its way (a full disk, too little memory) may be gone. Steps of the resident's module
    run in its process, all others in processes of their own."""
    task = from_plain(data)
    folder = Path(task.folder)
    folder.mkdir(parents=True, exist_ok=True)
    attempts = _count_attempt(folder)
    done = folder / DONE
    if done.is_file():
        known: dict[str, Any] = json.loads(done.read_text(encoding="utf-8"))
        if known["task"] == json.loads(json.dumps(data)):
            return {**known["answer"], "attempts": attempts}
        done.unlink()
    try:
        result: dict[str, Any] = {}
        for place, step in zip(places(task), task.steps, strict=True):
            result = _run_step(place, step, task.roots, environment or {}, resident)
        answer: dict[str, Any] = {"result": result}
    except MergingError as error:
        return {"error": error.as_dict(), "attempts": attempts}
    for path in task.remove:
        shutil.rmtree(path, ignore_errors=True)
    write_json(done, {"task": data, "answer": answer})
    return {**answer, "attempts": attempts}


def _run_step(
    folder: Path, step: Step, roots: list[str] | None, environment: dict[str, str], resident: Resident | None
) -> dict[str, Any]:
    output = Path(step.output) if step.output else None
    if output is not None and output.is_dir() and (folder / "result.json").is_file():
        return _result(folder)
    folder.mkdir(parents=True, exist_ok=True)
    parameters = dict(step.parameters)
    partial = output.with_name(f"{output.name}.partial") if output else None
    if partial is not None and output is not None:
        journal = folder / "journal.jsonl"
        if not partial.is_dir():
            journal.unlink(missing_ok=True)  # it speaks of a merge that was whole and is gone
        if not journal.is_file():
            shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True, exist_ok=True)
        parameters |= {"out": str(output), "partial": str(partial)}
    for name in ("result.json", "error.json"):
        (folder / name).unlink(missing_ok=True)
    write_json(folder / "request.json", {"kind": step.module, "parameters": parameters, "roots": roots})
    status = resident.run(folder) if resident and resident.module == step.module else _run_process(folder, step, environment)
    if status:
        error = folder / "error.json"
        if error.is_file():
            raise from_dict(json.loads(error.read_text(encoding="utf-8")))
        raise RunFailed(f"{step.module} ended with status {status}", f"read {folder / 'log.txt'}")
    if partial is not None and output is not None:
        require_folder(output, overwrite=True, not_ours=not_ours)
        aside = output.with_name(f"{output.name}.replaced")
        shutil.rmtree(aside, ignore_errors=True)
        replace_folder(partial, output, aside)
        shutil.rmtree(aside, ignore_errors=True)
    return _result(folder)


def _run_process(folder: Path, step: Step, environment: dict[str, str]) -> int:
    with (folder / "log.txt").open("a", encoding="utf-8") as log:
        ended = subprocess.run(
            [sys.executable, "-P", "-m", step.module, str(folder)],
            stdout=log,
            stderr=subprocess.STDOUT,
            check=False,
            env=child_environment(environment),
        )
    return ended.returncode


def _result(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    return found


def _count_attempt(folder: Path) -> int:
    file = folder / "attempts"
    count = int(file.read_text(encoding="utf-8")) + 1 if file.is_file() else 1
    file.write_text(str(count), encoding="utf-8")
    return count
