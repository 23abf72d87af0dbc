"""How an attempt ended, from what is left of it: exit status, signal, error file, result file, and the kernel's counters."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

from mcp_server.errors import MergingError, OutOfMemory, RunFailed, from_dict
from mcp_server.jobs.log_file import tail
from mcp_server.jobs.store import Record
from mcp_server.jobs.watch import Watched
from mcp_server.schemas.job import MergeResult
from mcp_server.system import files
from mcp_server.system.machine import gib, limit_bytes

EXIT_BUG = 70


def classify(folder: Path, record: Record, watched: Watched, oom_kills: int) -> Record:
    """The record after the worker has ended; `running` means that its work is whole and can be moved into place."""
    record = record.model_copy(update={"worker": None, "exit_code": watched.returncode})
    if watched.stopped:
        return _stopped(folder, record)
    if watched.silent_seconds is not None:
        return failed(record, _hung(folder, record, watched.silent_seconds))
    if watched.returncode < 0:
        return _killed(folder, record, watched, oom_kills)
    if watched.returncode == 0:
        return record if _is_object(folder / "result.json") else failed(record, _empty(folder, record))
    error = _reported(folder)
    if error is None:
        return failed(record, _unexplained(folder, watched.returncode))
    if error.details.get("signal") == signal.SIGKILL and oom_kills > 0:
        error = OutOfMemory("the kernel ended the engine for lack of memory")
    if isinstance(error, OutOfMemory):
        error = _with_numbers(error, record, watched)
    return failed(record, error)


def failed(record: Record, error: MergingError, exit_code: int | None = None) -> Record:
    code = exit_code or record.exit_code or error.exit_code
    return record.model_copy(update={"state": "failed", "error": error.as_dict(), "exit_code": code})


def bug(folder: Path) -> RunFailed:
    return RunFailed("a bug ended the job's runner", f"please report it with {folder / 'log.txt'}")


def succeeded(record: Record) -> Record:
    return record.model_copy(update={"state": "succeeded", "error": None, "exit_code": 0})


def merge_result(record: Record, worker: dict[str, Any], seconds: float, peak_anon_bytes: int | None) -> dict[str, Any]:
    """The `MergeResult` of a whole merge: the worker's words, with what only the runner knows."""
    known = {k: v for k, v in worker.items() if k in MergeResult.model_fields}
    sampled = [n for n in (peak_anon_bytes, worker.get("peak_anon_bytes")) if n is not None]
    known |= {
        "job_id": record.job_id,
        "state": "succeeded",
        "output": record.output,
        "engine": record.engine,
        "wall_seconds": round(seconds, 3),
        "peak_anon_bytes": max(sampled, default=None),  # a short run can end between two samples of the runner's
    }
    return MergeResult.model_validate(known).model_dump(mode="json")


def _stopped(folder: Path, record: Record) -> Record:
    if (folder / "cancel.json").is_file():
        return record.model_copy(update={"state": "cancelled", "error": None})
    error = RunFailed(f"job {record.job_id} was interrupted", "resume it to go on")
    return record.model_copy(update={"state": "interrupted", "error": error.as_dict()})


def _killed(folder: Path, record: Record, watched: Watched, oom_kills: int) -> Record:
    name = signal.Signals(-watched.returncode).name
    if watched.returncode == -signal.SIGKILL and oom_kills > 0:
        return failed(record, _with_numbers(OutOfMemory("the kernel ended the worker for lack of memory"), record, watched))
    if watched.returncode in (-signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT, -signal.SIGHUP):
        error = RunFailed(
            f"the worker was ended from outside ({name}); the kernel reports no lack of memory", "resume the job to go on"
        )
        return record.model_copy(update={"state": "interrupted", "error": error.as_dict()})
    said = tail(folder)
    return failed(
        record, RunFailed(f"the worker crashed ({name}){_quoted(said)}", f"see {folder / 'log.txt'}; resume the job to try again")
    )


def _with_numbers(error: OutOfMemory, record: Record, watched: Watched) -> OutOfMemory:
    """What it held, what there was and what was expected, so that the reader sees which of the three was wrong."""
    numbers = {
        "peak_anon_bytes": watched.peak_anon_bytes,
        "limit_bytes": limit_bytes(),
        "estimate_bytes": record.estimate_bytes,
        "budget_bytes": record.budget_bytes,
    }
    estimate = gib(record.estimate_bytes) if record.estimate_bytes is not None else "not known"
    held = gib(watched.peak_anon_bytes) if watched.peak_anon_bytes is not None else "not measured"
    message = f"{error.message}: it held {held}, the limit is {gib(numbers['limit_bytes'] or 0)}, the estimate was {estimate}"
    step = (
        "run it with engine 'stream', whose memory does not grow with the model, or with a smaller shard size (such as 500MB)"
        if record.engine == "mergekit"
        else "end other programs or raise the memory limit, then resume the job"
    )
    return OutOfMemory(message, error.next_step or step, **{**error.details, **numbers})


def _hung(folder: Path, record: Record, seconds: float) -> RunFailed:
    return RunFailed(
        f"the worker of job {record.job_id} said nothing for {seconds:.0f} s and was ended",
        f"see {folder / 'log.txt'}; if it only needs longer, raise MODEL_MERGING_HANG_TIMEOUT_S and resume the job",
    )


def _empty(folder: Path, record: Record) -> RunFailed:
    return RunFailed(f"the worker of job {record.job_id} ended without a result", f"see {folder / 'log.txt'} and resume the job")


def _unexplained(folder: Path, code: int) -> RunFailed:
    if code == EXIT_BUG:
        return RunFailed(f"a bug ended the worker{_quoted(tail(folder, 1))}", f"please report it with {folder / 'log.txt'}")
    return RunFailed(f"the worker ended with status {code}{_quoted(tail(folder))}", f"see {folder / 'log.txt'}")


def _quoted(text: str) -> str:
    return f"; the end of its log: {text[-600:]}" if text else ""


def _reported(folder: Path) -> MergingError | None:
    try:
        data = files.read_json(folder / "error.json")
    except (OSError, ValueError):
        return None
    return from_dict(data) if isinstance(data, dict) else None


def _is_object(path: Path) -> bool:
    try:
        return isinstance(json.loads(path.read_text(encoding="utf-8")), dict)
    except (OSError, ValueError):
        return False
