"""A job's log: bounded, rotated, without secrets, and readable by pages whose offsets stay valid.

The log is one stream of bytes. `log.txt` holds its end; when that reaches the limit it becomes `log.<k>.txt`, the k-th chunk, and
only the newest such chunk is kept. An offset counts from the start of the stream, so that rotation moves nothing.
"""

from __future__ import annotations

import codecs
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from mcp_server.schemas.job import LogPage, Progress
from mcp_server.system.files import own_only
from mcp_server.system.os_errors import FULL
from mcp_server.system.redaction import redact, secrets_of

_CHUNK: Final = re.compile(r"^log\.(\d+)\.(\d+)\.txt$")


class LogWriter:
    """Appends lines to the log of one job; used by its runner only."""

    def __init__(self, folder: Path, limit_bytes: int, environment: Mapping[str, str] | None = None) -> None:
        self.folder, self.limit = folder, limit_bytes
        self.secrets = secrets_of(os.environ if environment is None else environment)
        self.start = _chunks(folder)[-1][1] if _chunks(folder) else 0
        self._rest = b""

    def feed(self, data: bytes) -> None:
        """Write the whole lines of `data`; the rest waits for its end. A carriage return (progress bars) ends a line too."""
        lines = (self._rest + data).replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        self._rest = lines.pop()
        if len(self._rest) > 65_536:
            lines, self._rest = [*lines, self._rest], b""
        if lines:
            self._append(b"\n".join(lines).decode("utf-8", errors="replace") + "\n")

    def line(self, text: str) -> None:
        """One line of the runner's own."""
        self.feed(f"[model-merging] {text}\n".encode())

    def close(self) -> None:
        if self._rest:
            self.feed(b"\n")

    def _append(self, text: str) -> None:
        """A full disk costs lines of log, never the job."""
        path = self.folder / "log.txt"
        try:
            with open(path, "ab", buffering=0, opener=own_only) as file:
                file.write(redact(text, self.secrets).encode("utf-8", errors="replace"))
                size = file.tell()
        except OSError as error:
            if error.errno not in FULL:
                raise
            return
        if size >= self.limit:
            for old, _, _ in _chunks(self.folder):
                old.unlink(missing_ok=True)
            path.rename(self.folder / f"log.{self.start}.{self.start + size}.txt")
            self.start += size


def _chunks(folder: Path) -> list[tuple[Path, int, int]]:
    """(path, end, start) of the rotated chunks, oldest first."""
    found = []
    for path in folder.glob("log.*.*.txt"):
        if match := _CHUNK.match(path.name):
            found.append((path, int(match.group(2)), int(match.group(1))))
    return sorted(found, key=lambda c: c[1])


def read_page(folder: Path, offset: int, limit: int) -> LogPage:
    """At most `limit` bytes (but at least one character) from `offset`, cut at a line's end if there is one.

    `next_offset` is None at the end of what there is.
    """
    limit = max(limit, 4)
    pieces = [(start, path) for path, _, start in _chunks(folder)]
    ends = [end for _, end, _ in _chunks(folder)]
    pieces.append((ends[-1] if ends else 0, folder / "log.txt"))
    oldest = pieces[0][0]
    at = max(offset, oldest)
    note = f"[{oldest - offset} bytes of older log were dropped]\n" if offset < oldest else ""
    data = b""
    for start, path in pieces:
        if not path.is_file():
            continue
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if start + size > at + len(data) and len(data) < limit:
                file.seek(at + len(data) - start)
                data += file.read(limit - len(data))
            end = start + size
    end = _end(pieces)
    if at + len(data) < end:
        data = data[: data.rindex(b"\n") + 1] if b"\n" in data else _whole_characters(data)
    following = at + len(data)
    return LogPage(
        job_id=folder.name,
        text=note + data.decode("utf-8", errors="replace"),
        next_offset=following if following < end else None,
        path=str(folder / "log.txt"),
    )


def _whole_characters(data: bytes) -> bytes:
    """Without a character that is cut at the end."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    decoder.decode(data)
    return data[: len(data) - len(decoder.getstate()[0])]


def _end(pieces: list[tuple[int, Path]]) -> int:
    start, path = pieces[-1]
    return start + (path.stat().st_size if path.is_file() else 0)


def tail(folder: Path, lines: int = 5) -> str:
    """The last lines, for an error message."""
    path = folder / "log.txt"
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - 8192))
        found = [line for line in file.read().decode("utf-8", errors="replace").splitlines() if line.strip()]
    return "\n".join(found[-lines:])


_TAIL_BYTES = 16_384


def last_progress(folder: Path) -> Progress | None:
    """The newest readable progress line. Lines that are no progress, half-written or malformed are passed over."""
    for name in ("events.jsonl", "events.1.jsonl"):  # a full file was put aside a moment ago
        try:
            with (folder / name).open("rb") as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL_BYTES))
                lines = file.read().splitlines()
        except FileNotFoundError:
            continue
        if (found := _newest(lines)) is not None:
            return found
    return None


def _newest(lines: list[bytes]) -> Progress | None:
    for line in reversed(lines):
        try:
            event = json.loads(line)
            if event["event"] == "progress":
                return Progress.model_validate({k: v for k, v in event.items() if k in Progress.model_fields})
        except (ValueError, KeyError, TypeError, RecursionError, ValidationError):
            continue
    return None
