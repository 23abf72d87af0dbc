"""A worker that does what a test tells it: `python -m tests.fake_worker JOBDIR`.

The script is a list of steps, under the parameter "script" or, for a merge, in the recipe's comment `# script: [...]`.
`{"do": NAME, ...}`; see `STEPS`. A merge's steps are followed by writing a small output into `partial`.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict

from mcp_server import errors
from mcp_server.schemas.job import JobKind, JobRequest, ModelName, Names
from mcp_server.workers.protocol import Job, run_worker

FAKE = "tests.fake_worker"


class Scripted(JobRequest):
    """Parameters are whatever a test wants; those that are named here mean what they mean elsewhere."""

    model_config = ConfigDict(extra="allow", frozen=True)

    base: ModelName | None = None
    output: Annotated[str | None, Names.OUTPUT] = None


def scripted(kind: JobKind = "verify", **parameters: Any) -> JobRequest:
    made: type[Scripted] = type("Scripted", (Scripted,), {"kind": kind, "__module__": __name__, "__annotations__": {}})
    return made(**parameters)


STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"


def progress(job: Job, done: int = 1, total: int = 2, stage: str = "work", **_: Any) -> None:
    job.progress(stage, done, total, every_seconds=0)


def say(job: Job, text: str, times: int = 1, **_: Any) -> None:
    for _n in range(times):
        print(text, flush=True)


def fail(job: Job, type: str = "RunFailed", message: str = "told to fail", **_: Any) -> None:
    raise errors.from_dict({"type": type, "message": message})


def fail_until(job: Job, path: str, **error: Any) -> None:
    if not Path(path).exists():
        fail(job, **error)


def bug(job: Job, **_: Any) -> None:
    raise AssertionError("told to have a bug")


def kill(job: Job, signal: int = signal.SIGKILL, **_: Any) -> None:
    os.kill(os.getpid(), signal)


def leave(job: Job, status: int = 0, **_: Any) -> None:
    sys.stdout.flush()
    os._exit(status)


def block(job: Job, once: str | None = None, **_: Any) -> None:
    """For ever; with `once`, only until that file exists (a resumed job finds it)."""
    if once is not None and Path(once).exists():
        return
    if once is not None:
        Path(once).touch()
    job.progress("blocked", 0, 1, every_seconds=0)
    while True:
        time.sleep(60)


def wait_for(job: Job, path: str, **_: Any) -> None:
    job.progress("waiting", 0, 1, every_seconds=0)
    while not Path(path).exists():
        time.sleep(0.01)


def child(job: Job, pid_file: str, **_: Any) -> None:
    """A descendant in the worker's process group that ignores SIGTERM."""
    process = subprocess.Popen([sys.executable, "-c", STUBBORN], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    Path(pid_file).write_text(str(process.pid), encoding="utf-8")


def allocate(job: Job, mib: int, **_: Any) -> None:
    """Touch every page, in steps, so that a limit strikes while the runner watches."""
    held = []
    for n in range(mib // 8):
        held.append(b"\x01" * (8 << 20))
        job.progress("allocate", n * 8, mib)
        time.sleep(0.01)


def write(job: Job, name: str, bytes: int, **_: Any) -> None:
    path = Path(job.parameters.get("partial", job.folder)) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        for start in range(0, bytes, 1 << 16):
            file.write(os.urandom(min(1 << 16, bytes - start)))


def refuse(job: Job, number: int, path: str, **_: Any) -> None:
    raise OSError(number, os.strerror(number), path)


def exhaust(job: Job, **_: Any) -> None:
    bytearray(1 << 62)


def environment(job: Job, name: str, **_: Any) -> None:
    print(f"{name}={os.environ.get(name)}", flush=True)


def leak(job: Job, name: str, **_: Any) -> None:
    """Say a variable's value wherever a worker can say anything."""
    value = os.environ[name]
    print(f"the log: {value}", flush=True)
    job.progress("leak", 0, 1, message=f"the progress: {value}", every_seconds=0)
    raise errors.RunFailed(f"the error: {value}", f"the next step: {value}", detail={"deep": [value]})


_KNOWN = (
    progress, say, fail, fail_until, bug, kill, leave, block, wait_for, child, allocate,
    write, refuse, exhaust, environment, leak,
)  # fmt: skip


STEPS = {step.__name__: step for step in _KNOWN}


def script_of(parameters: dict[str, Any]) -> list[dict[str, Any]]:
    if "script" in parameters:
        return list(parameters["script"])
    for line in str(parameters.get("recipe", "")).splitlines():
        if line.startswith("# script: "):
            return list(json.loads(line.removeprefix("# script: ")))
    return []


def main(job: Job) -> dict[str, Any]:
    no_output = False
    for step in script_of(job.parameters):
        if step["do"] == "no_output":
            no_output = True
            continue
        STEPS[step["do"]](job, **{k: v for k, v in step.items() if k != "do"})
    if job.kind == "merge" and not no_output:
        partial = Path(job.parameters["partial"])
        partial.mkdir(parents=True, exist_ok=True)
        (partial / "config.json").write_text("{}", encoding="utf-8")
        (partial / "model.safetensors").write_bytes(b"whole")
        record = {"created": "2026-01-01", "job_id": job.parameters["job_id"], "product": "model-merging", "engine": "stream"}
        record |= {"engine_version": "fake", "method": "linear", "recipe": "", "sources": []}
        (partial / "merge_provenance.json").write_text(json.dumps(record), encoding="utf-8")
        return {"seed": job.parameters["seed"], "tensors": 1, "bytes": 5}
    return {"ok": True}


if __name__ == "__main__":
    sys.exit(run_worker(main))
