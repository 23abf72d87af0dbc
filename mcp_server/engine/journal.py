"""What is safely on disk, so that a killed merge goes on where it was and ends with the same bytes.

One JSON object a line. The first names the merge (a fingerprint of everything that decides the bytes), its seed and the inputs
as they were; each further line lists tensors whose bytes are on disk, with the evidence counted for them. A line is written only
after the weights are synced, and is synced itself, so a torn last line means nothing was lost but that line.
"""

from __future__ import annotations

import json
import os
import threading
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mcp_server.errors import InputChanged

_START_AGAIN = "restore it as it was and resume, or cancel this job and start a new merge"


@dataclass(frozen=True, slots=True)
class InputFile:
    """An input's identity: enough to notice that it is not the file it was."""

    path: str
    bytes: int
    mtime_ns: int
    header_sha256: str
    ctime_ns: int = 0
    inode: int = 0

    @classmethod
    def of(cls, path: Path, header_sha256: str) -> InputFile:
        status = path.stat()
        return cls(str(path), status.st_size, status.st_mtime_ns, header_sha256, status.st_ctime_ns, status.st_ino)


class Journal:
    """The journal of one merge. `done` maps tensor number to the evidence counted for it."""

    def __init__(self, path: Path, fingerprint: str, seed: int, inputs: list[InputFile]) -> None:
        self.path, self.inputs, self.done = path, inputs, dict[int, Any]()
        self._lock = threading.Lock()
        self._waiting: dict[int, Any] = {}
        lines = _read(path)
        if lines:
            _refuse_changes(lines[0]["inputs"], inputs)
        same = bool(lines) and [InputFile(**entry) for entry in lines[0]["inputs"]] == inputs
        if same and lines[0]["fingerprint"] == fingerprint and lines[0]["seed"] == seed:
            for line in lines[1:]:
                self.done |= {int(tensor): evidence for tensor, evidence in line["tensors"].items()}
            self._truncate_to(lines)
        else:
            path.write_text(_line({"fingerprint": fingerprint, "seed": seed, "inputs": [asdict(i) for i in inputs]}), "utf-8")
        self._file = path.open("a", encoding="utf-8")

    @property
    def resumes(self) -> bool:
        return bool(self.done)

    def check_inputs(self) -> None:
        """Raise `InputChanged` when an input is no longer the file that this merge began with: then its bytes are a mixture."""
        for entry in self.inputs:
            try:
                status = Path(entry.path).stat()
            except FileNotFoundError as gone:
                raise InputChanged(f"{entry.path} was removed while it was read", _START_AGAIN) from gone
            if (status.st_ctime_ns, status.st_ino) != (entry.ctime_ns, entry.inode) and (
                status.st_size,
                status.st_mtime_ns,
            ) == (entry.bytes, entry.mtime_ns):
                raise InputChanged(
                    f"{entry.path} was changed or replaced while it was read: size and modification time are as they were, "
                    f"but the file system notes a change at {_moment(status.st_ctime_ns)}",
                    _START_AGAIN,
                )
            if (status.st_size, status.st_mtime_ns) != (entry.bytes, entry.mtime_ns):
                raise InputChanged(
                    f"{entry.path} was changed while it was read ({entry.bytes} bytes of {_moment(entry.mtime_ns)} then, "
                    f"{status.st_size} bytes of {_moment(status.st_mtime_ns)} now)",
                    _START_AGAIN,
                )

    def forget(self) -> None:
        """The output files are not what the journal says: begin anew."""
        first = _read(self.path)[:1]
        self.done.clear()
        self._file.close()
        self._truncate_to(first)
        self._file = self.path.open("a", encoding="utf-8")

    def computed(self, tensor: int, evidence: Any) -> None:
        """A tensor is computed, its bytes on their way to the disk."""
        with self._lock:
            self._waiting[tensor] = evidence

    def on_disk(self, tensors: list[int]) -> None:
        """These tensors' bytes are on disk."""
        with self._lock:
            entry = {tensor: self._waiting.pop(tensor) for tensor in tensors}
        self._file.write(_line({"tensors": entry}))
        self._file.flush()
        os.fsync(self._file.fileno())
        self.done |= entry

    def close(self) -> None:
        self._file.close()

    def _truncate_to(self, lines: list[dict[str, Any]]) -> None:
        partial = self.path.with_suffix(".partial")
        partial.write_text("".join(map(_line, lines)), "utf-8")
        partial.replace(self.path)


def recorded_seed(path: Path) -> int | None:
    """The seed of the merge that this journal belongs to, if there is one."""
    lines = _read(path)
    return lines[0].get("seed") if lines else None


def _line(data: dict[str, Any]) -> str:
    return json.dumps(data) + "\n"


def _read(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:  # torn by the kill; nothing after it is trusted
            break
    return lines


def _moment(mtime_ns: int) -> str:
    return datetime.fromtimestamp(mtime_ns / 1e9, UTC).isoformat(timespec="milliseconds")


def _refuse_changes(recorded: list[dict[str, Any]], now: list[InputFile]) -> None:
    """Of another change time or inode alone nobody can say what it means, nor put it back (a file that was moved away and back,
    a restored copy, an edit whose time was put back): then nothing that was computed is kept, and the merge begins anew."""
    before = {entry["path"]: InputFile(**entry) for entry in recorded}
    for entry in now:
        old = before.get(entry.path)
        if old is None or replace(old, ctime_ns=entry.ctime_ns, inode=entry.inode) != entry:
            raise InputChanged(
                f"{entry.path} is not the file this merge began with ({before.get(entry.path)} then, {entry} now)",
                "restore it and resume, or start a new merge",
            )
