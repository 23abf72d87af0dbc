"""What runs a job, with its operations failing: the runner around a worker, and the workers that write.

A runner that fails leaves a job whose state is true and which can be resumed to the same output; a worker that fails says why in
our words, and does its work when it is started again.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path

from mcp_server import jobs
from mcp_server.jobs import publish, queue, runner, store
from mcp_server.jobs.locks import try_lock
from mcp_server.schemas.job import (
    CompareRequest,
    ExportRequest,
    FetchRequest,
    JobRequest,
    MergeRequest,
    PublishRequest,
    VerifyRequest,
)
from mcp_server.system import files
from mcp_server.workers import protocol
from tests import tiny
from tests.faults.scenes import Scene, undisturbed

HUB = "EVERY_OPERATION_HUB"
"""The variable with the address of the hub on loopback, which has `REPOSITORY`."""
REPOSITORY = "acme/base"
BUG = 70
Ask = Callable[[Path], JobRequest]


def merge(user: Path, out: str, *, overwrite: bool = False) -> MergeRequest:
    recipe = tiny.linear_recipe(user / "code", user / "chat")
    return MergeRequest(recipe=recipe, out=str(user / out), seed=1, threads=1, overwrite=overwrite)


def adapters(user: Path) -> MergeRequest:
    base = user / "base"
    models = "".join(f"- model: {base}+{user / name}\n  parameters: {{weight: 0.5}}\n" for name in ("persona", "tools"))
    recipe = f"merge_method: task_arithmetic\nbase_model: {base}\nmodels:\n{models}dtype: bfloat16\n"
    return MergeRequest(recipe=recipe, out=str(user / "both"), seed=1, threads=1, output="adapter")


def compared(user: Path) -> CompareRequest:
    return CompareRequest(base=str(user / "base"), refs=[str(user / "code"), str(user / "chat")], threads=1)


def verified(user: Path) -> VerifyRequest:
    return VerifyRequest(out=str(user / "merged"), load=False)


def exported(user: Path) -> ExportRequest:
    return ExportRequest(out=str(user / "merged"), dest=str(user / "served"), to="vllm", check=False)


def published(user: Path) -> PublishRequest:
    return PublishRequest(out=str(user / "merged"), repo="me/merged", private=True, yes=True)


def waiting(request: JobRequest) -> tuple[Path, store.Record]:
    """A job that nobody runs yet, as the queue hands it to its runner."""
    held: list[tuple[Path, store.Record]] = []
    spawn, queue.spawn = queue.spawn, lambda folder, record: held.append((folder, record))
    try:
        jobs.start(request)
    finally:
        queue.spawn = spawn
    folder, record = held[0]
    return folder, record.model_copy(update={"state": "running", "attempt": 1, "started": store.now()})


def say(text: str) -> None:
    print(text, file=sys.stderr)  # its own stream is no job's, and does not fail


def runner_of(name: str, ask: Ask, *outputs: str) -> Scene:
    def run(user: Path) -> int:
        with undisturbed():
            folder, record = waiting(ask(user))
            handle = try_lock(folder / "runner.lock")
            assert handle is not None
            store.write(folder, record)
        try:
            runner.main(folder, handle)
        except Exception as error:  # noqa: BLE001 - a runner that dies is found by whoever looks next
            say(f"the runner died: {error!r}")
        with undisturbed():
            os.closerange(3, 1024)  # as the kernel does for a process that ended: its locks are free
            return settled(folder, user)

    return Scene(f"runner of {name}", run, outputs, log=True)


def settled(folder: Path, user: Path) -> int:
    """0 when the job says that it succeeded; 4 when it says why not and succeeds when it is resumed; else a bug."""
    found = jobs.status(folder.name)
    if found.state == "succeeded":
        return 0
    said = str((found.error or {}).get("message", ""))
    say(f"{found.state}: {said}")
    if found.state not in store.TERMINAL or not said or "bug" in said:
        return BUG
    again = jobs.resume(folder.name)
    left = [path.name for path in user.iterdir() if any(mark in path.name for mark in (".partial-", ".replaced-", ".lock"))]
    say(f"resumed: {again.state} {again.error or ''} {left}")
    return 4 if again.state == "succeeded" and not left else BUG


def worker_of(name: str, module: str, ask: Ask, *outputs: str) -> Scene:
    def run(user: Path) -> int:
        with undisturbed():
            use_hub()
            folder, record = waiting(ask(user))
            publish.prepare(record)
            work = importlib.import_module(f"mcp_server.workers.{module}").main
        code = protocol.run_one(folder, work)
        with undisturbed():
            if code != 0:
                if not (folder / "error.json").is_file():
                    say("no error.json")
                    return BUG
                say(files.read_json(folder / "error.json")["message"])
                if again := protocol.run_one(folder, work):
                    say(f"started again, it ends with {again}")
                    return BUG
            publish.note_worker_done(folder, record, files.read_json(folder / "result.json"))
            publish.move_into_place(folder, record, overwrite=False)
        return code

    return Scene(f"worker of {name}", run, outputs, log=True)


def use_hub() -> None:
    """Every call of huggingface_hub goes to the hub on loopback: it has read the environment when it was imported."""
    from huggingface_hub import constants

    constants.ENDPOINT = os.environ[HUB]
    constants.HUGGINGFACE_CO_URL_TEMPLATE = os.environ[HUB] + "/{repo_id}/resolve/{revision}/{filename}"
    constants.HF_HUB_CACHE = str(Path(os.environ["HF_HOME"]) / "hub")
    constants.HF_HUB_DISABLE_XET = True
    constants.HF_HUB_DISABLE_PROGRESS_BARS = True


JOB_SCENES: tuple[Scene, ...] = (
    runner_of("a merge", lambda user: merge(user, "out"), "out"),
    runner_of("a merge that replaces one", lambda user: merge(user, "merged", overwrite=True), "merged"),
    runner_of("a verification", verified, "merged/verification.json"),
    runner_of("an export", exported, "served"),
    worker_of("a merge", "stream", lambda user: merge(user, "out"), "out"),
    worker_of("a merge of adapters", "stream", adapters, "both"),
    worker_of("a comparison", "compare", compared),
    worker_of("a verification", "verify", verified, "merged/verification.json"),
    worker_of("an export", "export", exported, "served"),
    worker_of("a publication", "publish", published),
    worker_of("a download", "fetch", lambda user: FetchRequest(ref=REPOSITORY)),
)
