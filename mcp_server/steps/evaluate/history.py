"""Evaluations of one merge side by side: a line a run in `evaluations.jsonl`, never overwritten; `evaluation.json` is the newest.

Which runs still speak of the weights that lie there now is told by the content hash.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from mcp_server.errors import Malformed
from mcp_server.formats.content import content_hash
from mcp_server.formats.folder import require_folder_there
from mcp_server.schemas.evidence import Evaluation, EvaluationList, EvaluationRun, Verification
from mcp_server.schemas.faults import first_fault
from mcp_server.schemas.replies import KeptReplies
from mcp_server.system.outputs import is_json_with, leave_record

NEWEST: Final = "evaluation.json"
HISTORY: Final = "evaluations.jsonl"


def keep(out: Path, found: Evaluation, *, run: bool = True) -> Evaluation:
    """Leave the newest result in the folder and, for a `run`, add it to the history; returns it with its path.

    Where nothing may be left there it is returned as it came: the job's result has it all the same.
    """
    written = found.model_copy(update={"path": str(out / NEWEST)})
    if leave_record(out / NEWEST, written.model_dump(mode="json"), is_json_with("capabilities", "verdict")) is None:
        return found
    if run:
        _append(out, written)
    return written


def _append(out: Path, found: Evaluation) -> None:
    """Nothing is added to what is no file of this folder: a link in somebody's merge could lead to any file of the user's."""
    file = out / HISTORY
    if file.is_symlink() or (file.exists() and not file.is_file()):
        return
    line = json.dumps(found.model_dump(mode="json"), ensure_ascii=False) + "\n"
    with open(file, "a", encoding="utf-8", opener=_not_through_a_link) as stream:
        stream.write(line)
        stream.flush()
        os.fsync(stream.fileno())


def _not_through_a_link(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)


def evaluations(out: Path) -> EvaluationList:
    """Every run of a merge, newest first. Raises `NotFound` without the folder, `Malformed` for a line that is no evaluation."""
    require_folder_there(out)
    now = content_hash(out, remembered=True)
    runs = [_run(found, now) for found in _stored(out)]
    return EvaluationList(output=str(out), runs=runs[::-1])


def of_these_files(out: Path, **evidence: Evaluation | Verification | KeptReplies | None) -> dict[str, bool | None]:
    """Part → does it speak of the files in `out`, which are read anew; null where the part does not say of which it speaks."""
    found = {name: part.model for name, part in evidence.items() if part is not None}
    now = content_hash(out) if any(found.values()) else None
    return {name: None if model is None else model == now for name, model in found.items()}


def _stored(out: Path) -> list[Evaluation]:
    file = out / HISTORY if (out / HISTORY).is_file() else out / NEWEST
    if not file.is_file():
        return []
    raw = file.read_bytes()
    lines = raw.splitlines() if file.name == HISTORY else [raw]  # as bytes: texts may hold characters that end a line of text
    found = []
    for number, line in enumerate(lines, 1):
        try:
            found.append(Evaluation.model_validate_json(line))
        except ValidationError as error:
            if number == len(lines) > 1:
                continue  # the last line of a run that was ended while it wrote
            raise Malformed(
                f"{file}, line {number}: {first_fault(error, Evaluation)}", "remove the line, or measure again"
            ) from error
    return found


def _run(found: Evaluation, now: str) -> EvaluationRun:
    return EvaluationRun(
        created=found.created,
        split=found.split,
        suites={c.suite: c.n for c in found.capabilities.values()},
        merged={name: c.merged for name, c in found.capabilities.items()},
        verdict=found.verdict,
        model=found.model,
        current=None if found.model is None else found.model == now,
        numerics=found.numerics,
        seconds=found.seconds,
    )
