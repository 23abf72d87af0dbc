"""The store of jobs: one folder each, the state in `status.json`, the unfinished ones listed in `active/`.

    HOME/jobs/<job>/     request.json  status.json  events.jsonl  log.txt  result.json | error.json  cancel.json  runner.lock
    HOME/jobs/.active/<job>     an empty file for every job that is queued or running (so the queue never reads finished ones)
    HOME/jobs/.queue.lock       held while the queue is looked at or changed
    HOME/jobs/.new/<job>/       a job that is being made; renamed to its place once its request and state are written

Only the holder of a job's `runner.lock` changes its state; the dispatcher takes that lock first and hands it to the runner.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from pydantic import Field, ValidationError

from mcp_server.errors import DiskFull, Malformed, NotFound, RunFailed, did_you_mean
from mcp_server.jobs.locks import is_held, try_lock
from mcp_server.jobs.process import ProcessId
from mcp_server.schemas.base import EngineId, Frozen
from mcp_server.schemas.estimate import Seconds
from mcp_server.schemas.job import JobKind, JobState
from mcp_server.system import files, paths
from mcp_server.system.files import lock_folder, remove_abandoned
from mcp_server.system.os_errors import FULL, in_our_words

TERMINAL: Final = frozenset({"succeeded", "failed", "cancelled", "interrupted"})
WRITING: Final = frozenset({"merge", "sweep", "export"})
"""Kinds that have an output of their own, which they lock."""
SPARES: Final = (".spare-runner", ".spare-worker")
"""Blocks that every job keeps on the disk, so that runner and worker can write their final records when it is full."""
SPARE_BYTES: Final = 32_768
_ID: Final = re.compile(r"^[a-z]+-\d{8}-\d{6}-[0-9a-z]{4}$")
_DIGITS: Final = "0123456789abcdefghijklmnopqrstuvwxyz"


class Record(Frozen):
    """What `status.json` holds: the public state and what the runner and the queue need to know."""

    job_id: str
    kind: JobKind
    state: JobState
    created: str
    started: str | None = None
    finished: str | None = None
    attempt: int = 0
    output: str | None = None
    partial: str | None = Field(default=None, description="where the worker writes; renamed to output when whole")
    engine: EngineId | None = None
    seed: int | None = None
    estimate_bytes: int | None = Field(default=None, description="upper bound of the worker's memory that cannot be reclaimed")
    budget_bytes: int | None = Field(default=None, description="what the user gave this job")
    takes: Seconds | None = Field(default=None, description="how long it takes, estimated at the start")
    known: str = Field(default="", description="how many answers of an evaluation are remembered")
    held: str = Field(default="", description="in how few bits an evaluation holds weights, and why; empty: in 16 or more")
    runner: ProcessId | None = None
    worker: ProcessId | None = None
    error: dict[str, Any] | None = None
    exit_code: int | None = None


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def new_folder(kind: str) -> Path:
    """Make the folder of a new job, not yet in its place. The id sorts by time (to a millisecond) and is easy to read out."""
    staging = files.private_folder(paths.jobs_dir() / ".new")
    while True:
        moment = datetime.now(UTC)
        fraction = moment.microsecond * 1296 // 1_000_000
        tail = _DIGITS[fraction // 36] + _DIGITS[fraction % 36] + secrets.choice(_DIGITS) + secrets.choice(_DIGITS)
        folder = staging / f"{kind}-{moment:%Y%m%d-%H%M%S}-{tail}"
        if (paths.jobs_dir() / folder.name).exists():
            continue
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700)
            return folder


def settle(folder: Path) -> Path:
    """Put a job whose request and state are written into its place, where everybody sees it. Returns its folder there."""
    place = paths.jobs_dir() / folder.name
    folder.rename(place)
    return place


def find(job_id: str) -> Path:
    """The folder of a job. Raises `NotFound`; an id that could leave the store is not looked up."""
    folder = paths.jobs_dir() / job_id
    if _ID.match(job_id) and folder.is_dir():
        return folder
    near = did_you_mean(job_id, [f.name for f in folders()]) if len(job_id) < 100 else ""
    raise NotFound(f"no job {job_id[:100]!r} in {paths.jobs_dir()}.{near}", "list the jobs to see their ids")


def is_id(text: str) -> bool:
    """Whether a text has the form of a job's id."""
    return bool(_ID.match(text))


def names() -> list[str]:
    """Every job's id, newest first."""
    try:
        found = [name for name in os.listdir(paths.jobs_dir()) if _ID.match(name)]  # noqa: PTH208 - 10,000 paths cost 20 ms
    except FileNotFoundError:
        return []
    found.sort(key=lambda name: name.split("-", 1)[1], reverse=True)
    return found


def folders() -> list[Path]:
    """Every job's folder, newest first."""
    return [paths.jobs_dir() / name for name in names()]


def _index() -> Path:
    return paths.jobs_dir() / ".ended"


def ended() -> dict[str, str]:
    """Job → how it ended, as far as it was noted. Only a help: what is missing or damaged is read from the job itself."""
    try:
        lines = _index().read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return {}
    found = {name: state for name, _, state in (line.partition(" ") for line in lines) if state in TERMINAL}
    if len(lines) > 2 * len(found) + 1000:
        with contextlib.suppress(OSError):
            files.write_text(_index(), "".join(f"{name} {state}\n" for name, state in found.items()))
    return found


def forget_removed() -> None:
    """Leave out of the index the jobs whose folders are gone."""
    there = set(names())
    found = {name: state for name, state in ended().items() if name in there}
    with contextlib.suppress(OSError):
        files.write_text(_index(), "".join(f"{name} {state}\n" for name, state in found.items()))


def note_ended(name: str, state: str) -> None:
    """The last line of a job counts. A line that is lost costs its reader one look at the job."""
    with (
        contextlib.suppress(OSError),
        open(_index(), "ab", buffering=0, opener=files.own_only) as file,
    ):
        file.write(f"{name} {state}\n".encode())


def write(folder: Path, record: Record) -> None:
    """Replace `status.json`. On a full disk the spare block that every job keeps is given up for it."""
    files.write_json_at_last(folder / "status.json", record.model_dump(mode="json"), folder / SPARES[0])
    if record.state in TERMINAL:
        note_ended(folder.name, record.state)


def read(folder: Path, *, by_holder: bool = False) -> Record:
    """The stored record; one that cannot be read is rebuilt from the other files and says so.

    `by_holder`: the caller holds the job's lock, so that a held lock does not mean that the job runs.
    """
    try:
        return Record.model_validate_json((folder / "status.json").read_bytes())
    except FileNotFoundError as missing:
        if not folder.is_dir():
            raise NotFound(f"job {folder.name} was removed", "list the jobs to see what is there") from missing
        return _rebuilt(folder, "is missing", by_holder)
    except ValidationError:
        return _rebuilt(folder, "is corrupt", by_holder)


def _rebuilt(folder: Path, what: str, by_holder: bool) -> Record:
    """A record from the evidence that is left: the request, the locks, and whether a result or an error was written."""
    parameters: dict[str, Any] = {}
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        parameters = dict(files.read_json(folder / "request.json")["parameters"])
    if not by_holder and is_held(folder / "runner.lock"):
        state: JobState = "running"
    else:
        state = "interrupted"
    error = RunFailed(
        f"the state of job {folder.name} is lost: its status.json {what}", "resume the job, or start it again and remove this one"
    )
    kind = folder.name.split("-", 1)[0]
    moment = datetime.strptime(folder.name.split("-", 1)[1][:15], "%Y%m%d-%H%M%S").replace(tzinfo=UTC)
    return Record.model_validate(
        {
            "job_id": folder.name,
            "kind": kind,
            "state": state,
            "created": moment.isoformat().replace("+00:00", "Z"),
            "output": parameters.get("out") if kind in WRITING else None,
            "partial": parameters.get("partial"),
            "engine": parameters.get("engine") if parameters.get("engine") in ("stream", "mergekit") else None,
            "error": None if state == "running" else error.as_dict(),
        }
    )


def note_spawned(folder: Path, runner: ProcessId | None) -> None:
    """Who was started as the runner, in a file of its own: the record is the runner's to write as soon as it lives."""
    if runner is not None:
        files.write_json(folder / "spawned.json", runner.model_dump())


def runner_of(folder: Path, record: Record) -> ProcessId | None:
    """The job's runner, also while it is still starting and has not written itself into the record."""
    if record.runner is not None:
        return record.runner
    try:
        return ProcessId.model_validate(files.read_json(folder / "spawned.json"))
    except (OSError, ValueError):
        return None


def read_request(folder: Path) -> dict[str, Any]:
    """The job's request. Raises `Malformed` when the file was damaged."""
    try:
        request = files.read_json(folder / "request.json")
        if isinstance(request["parameters"], dict) and isinstance(request["worker"], str):
            return dict(request)
        problem = "it lacks what a runner needs"
    except (ValueError, KeyError, TypeError) as error:
        problem = str(error)
    raise Malformed(f"the request of job {folder.name} is damaged ({problem})", "start the work again, and prune this job")


def mark_active(folder: Path, active: bool) -> None:
    mark = folder.parent / ".active" / folder.name
    if active:
        files.private_folder(mark.parent)
        mark.touch(mode=0o600)
    else:
        mark.unlink(missing_ok=True)


def active() -> list[Path]:
    """Folders of the jobs that are queued or running, oldest first. Marks of jobs that are gone are cleaned up."""
    marks = paths.jobs_dir() / ".active"
    try:
        names = sorted((m.name for m in marks.iterdir() if _ID.match(m.name)), key=lambda name: name.split("-", 1)[1])
    except FileNotFoundError:
        return []
    found = []
    for name in names:
        folder = paths.jobs_dir() / name
        if folder.is_dir():
            found.append(folder)
        else:
            (marks / name).unlink(missing_ok=True)
    return found


def queue_lock() -> Path:
    return paths.jobs_dir() / ".queue.lock"


@contextlib.contextmanager
def creating(kind: str) -> Iterator[Path]:
    """A new job folder that vanishes again when its creation fails; a store that cannot be written is said in our words.

    Its maker holds a lock on it, so that what a killed one left behind is told from what is being made, and removed. It also
    holds the job's own lock, so that nobody starts the job before its maker is done.
    """
    folder: Path | None = None
    handles: list[int | None] = []
    try:
        remove_abandoned(paths.jobs_dir() / ".new")
        folder = new_folder(kind)
        handles += [lock_folder(folder), try_lock(folder / "runner.lock")]
        keep_spares(folder)
        yield folder
    except OSError as error:
        _discard(folder)
        if error.errno in FULL:
            raise DiskFull(
                f"the job store {paths.home()} is on a full disk", "free some space, or set MODEL_MERGING_HOME"
            ) from error
        raise in_our_words(error, paths.home(), "try again, or set MODEL_MERGING_HOME") from error
    except BaseException:
        _discard(folder)
        raise
    finally:
        for handle in handles:
            if handle is not None:
                os.close(handle)


def keep_spares(folder: Path) -> None:
    for name in SPARES:
        with open(folder / name, "wb", opener=files.own_only) as file:
            file.write(os.urandom(SPARE_BYTES))  # random, so that no file system compresses it away


def drop_spares(folder: Path) -> None:
    for name in SPARES:
        (folder / name).unlink(missing_ok=True)


def _discard(folder: Path | None) -> None:
    if folder is not None:
        place = paths.jobs_dir() / folder.name
        shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(place, ignore_errors=True)
        mark_active(place, False)


def age_seconds(folder: Path) -> float:
    """Seconds since the job's state last changed; never negative, whatever the clock did."""
    try:
        changed = (folder / "status.json").stat().st_mtime
    except OSError:
        changed = folder.stat().st_mtime
    return max(0.0, time.time() - changed)
