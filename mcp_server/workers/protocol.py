"""How a worker talks: files in its job folder.

in    request.json   {"kind": …, "parameters": {…}}
out   events.jsonl   one JSON object a line; progress is {"event": "progress", "stage", "done", "total", "unit", "message"}
      result.json    a result model, written atomically when the work is whole
      error.json     `MergingError.as_dict()` when the work failed in a way we know

The exit status is 0 or the error's own. Anything else that is raised is a bug: its traceback goes to stderr (the job's log)
and the exit status is 70. A worker dies with the process that started it, so that nobody works on an output unwatched.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

from pydantic import BaseModel

from mcp_server.errors import MergingError, OutOfMemory
from mcp_server.schemas.job import JobRequest
from mcp_server.system import guard, paths
from mcp_server.system.files import own_only, private_folder, write_json, write_json_at_last
from mcp_server.system.os_errors import FULL, refusal
from mcp_server.system.policy import Policy
from mcp_server.system.redaction import redact, redact_all, secrets_of

__all__ = ["EXIT_BUG", "Job", "die_with_parent", "online", "run_worker", "tie_to_runner", "write_json"]

EXIT_BUG: Final = 70
_EVENTS_BYTES: Final = 4_000_000
_SPARE: Final = ".spare-worker"
_PR_SET_PDEATHSIG: Final = 1
R = TypeVar("R", bound=JobRequest)
RUNNER_PID: Final = "MODEL_MERGING_RUNNER_PID"
"""Set by the runner; a worker that a person starts by hand has none and is tied to nothing."""


class Job:
    """A worker's view of its job folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        request = json.loads((folder / "request.json").read_text(encoding="utf-8"))
        self.kind: str = request["kind"]
        self.parameters: dict[str, Any] = request["parameters"]
        self.trust_remote_code: bool = bool(request.get("trust_remote_code", False))
        """The operator's word; False unless the settings say otherwise."""
        self.roots: list[str] | None = request.get("roots")
        """The folders under which this job may read; None: everywhere. `run_worker` holds the whole process to it."""
        self._last = 0.0
        self._secrets = secrets_of(os.environ)

    def request(self, kind: type[R]) -> R:
        """The typed request. Raises `BadInput` that names the field."""
        return kind.of(self.parameters)

    def keep_to_roots(self) -> None:
        """From here on this process opens nothing outside the job's roots, the store and the hub cache."""
        if self.roots is not None:
            folders = [*map(Path, self.roots), self.folder, paths.home(), paths.huggingface_cache()]
            guard.enforce(Policy(tuple(Path(os.path.realpath(folder)) for folder in folders)))
            os.environ["TMPDIR"] = str(private_folder(self.folder / "tmp"))  # what libraries keep for a moment is the job's too
            tempfile.tempdir = None

    def event(self, event: str, **fields: Any) -> None:
        """Append one line. The file is bounded: when it is full it starts again, because only the end is ever read."""
        line = redact(json.dumps({"event": event, "time": round(time.time(), 3), **fields}, ensure_ascii=False), self._secrets)
        path = self.folder / "events.jsonl"
        try:
            with open(path, "ab", buffering=0, opener=own_only) as file:
                file.write(f"{line}\n".encode())
                full = file.tell() > _EVENTS_BYTES
        except OSError as error:
            if error.errno not in FULL:
                raise
            return  # a store on a full disk costs progress lines, not the work
        if full:
            path.replace(path.with_name("events.1.jsonl"))

    def progress(
        self,
        stage: str,
        done: float = 0,
        total: float | None = None,
        *,
        unit: str = "",
        message: str = "",
        every_seconds: float = 0.25,
        left_seconds: float | None = None,
        leaders: Sequence[str] = (),
    ) -> None:
        """Report progress, at most once per `every_seconds` except at the end of a stage."""
        now = time.monotonic()
        if now - self._last < every_seconds and done not in (0, total):
            return
        self._last = now
        more: dict[str, Any] = {} if left_seconds is None else {"left_seconds": round(left_seconds, 1)}
        if leaders:
            more["leaders"] = list(leaders)
        self.event("progress", stage=stage, done=done, total=total, unit=unit, message=message, **more)


def online() -> bool:
    """Whether the job layer lets this worker ask a hub: its recipe names an id that is not here, and the operator allows it."""
    return os.environ.get("HF_HUB_OFFLINE") != "1"


def die_with_parent() -> None:
    """Have the kernel end this process when its parent dies. Linux; elsewhere `_watch_parent` does it within a second."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _watch_parent(parent: int) -> None:
    """Where the kernel does not tell: leave when the parent is no longer the one that started us."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os.kill(os.getpid(), signal.SIGKILL)


def _tie_to_parent(runner: int) -> None:
    parent = os.getppid()
    die_with_parent()
    try:
        os.kill(runner, 0)
    except ProcessLookupError:
        os.kill(os.getpid(), signal.SIGKILL)  # it died before we could ask
    if sys.platform != "linux":
        threading.Thread(target=_watch_parent, args=(parent,), daemon=True).start()


def tie_to_runner() -> None:
    """End when the runner ends. `run_worker` does it; a worker that imports for seconds does it before."""
    if runner := os.environ.get(RUNNER_PID):
        _tie_to_parent(int(runner))


def run_worker(work: Callable[[Job], BaseModel | dict[str, Any]]) -> int:
    """`sys.exit(run_worker(main))` is the last line of every worker; argv[1] is the job folder."""
    tie_to_runner()
    return run_one(Path(sys.argv[1]), work)


def run_one(folder: Path, work: Callable[[Job], BaseModel | dict[str, Any]]) -> int:
    """The work of one job folder in this process; returns its exit status."""
    try:
        return _run(folder, work)
    finally:
        shutil.rmtree(folder / "tmp", ignore_errors=True)


def _run(folder: Path, work: Callable[[Job], BaseModel | dict[str, Any]]) -> int:
    job: Job | None = None
    try:
        job = Job(folder)
        job.keep_to_roots()
        result = work(job)
        data = result.model_dump(mode="json") if isinstance(result, BaseModel) else result
        write_json_at_last(folder / "result.json", data, folder / _SPARE)
    except MergingError as error:
        return _report(folder, error)
    except MemoryError as error:
        traceback.print_exc()
        return _report(folder, OutOfMemory(f"the worker could not get the memory it asked for ({error or 'no size given'})"))
    except Exception as error:  # noqa: BLE001 - the process boundary: the traceback goes to the log, the exit status says "bug"
        traceback.print_exc()
        place = job.parameters.get("partial") if job is not None else None
        refused = refusal(error, place or folder, "resume the job")
        return EXIT_BUG if refused is None else _report(folder, refused)
    return 0


def _report(folder: Path, error: MergingError) -> int:
    print(error, file=sys.stderr)
    with contextlib.suppress(OSError):  # the log and the exit status still tell
        told = redact_all(error.as_dict(), secrets_of(os.environ))
        write_json_at_last(folder / "error.json", told, folder / _SPARE)
    return error.exit_code
