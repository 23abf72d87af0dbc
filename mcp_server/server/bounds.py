"""Keep every result small enough for a model to read: 8,000 characters of JSON at most.

An agent pays for each character that it reads, and clients cut what is too long in the middle. So a result that exceeds the limit
is shortened here, longest parts first, in a way that leaves it valid against its own schema (lists lose their tail, long texts
their end), and the whole of it is written to a file that the answer names.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Final

from mcp_server.system import paths
from mcp_server.system.files import private_folder, write_text

MAX_CHARACTERS: Final = 8_000
"""Of one result: its JSON text, with the note about what was left out."""
ROOM_FOR_NOTE: Final = 700
SHORTEST_TEXT: Final = 160
KEEP_WHOLE: Final = frozenset({"scenario", "recipe", "strategy", "job_id", "path", "output", "log_path"})
"""Fields that the next call takes back as they are; shortening one would hand the agent something broken."""
OPEN_TABLES: Final = frozenset({"breakdown", "landed", "rounding_loss", "values", "capabilities", "cross_context", "detail"})
"""Tables from names to values, which may lose entries; the other objects are models, whose fields must all stay."""


def compact(data: Any) -> str:
    """JSON without spaces, non-ASCII kept as it is."""
    return json.dumps(data, ensure_ascii=False, separators=(",", ":"))


def shorten(data: dict[str, Any], limit: int) -> tuple[dict[str, Any], list[str]]:
    """A copy of `data` whose JSON has at most `limit` characters where that can be done, and what was cut ("findings: 12 of 90").

    Cuts the tail of the largest list, table or text by as much as is needed, at most by half, until the whole fits or nothing
    long is left.
    """
    copy: dict[str, Any] = json.loads(json.dumps(data))
    cut: dict[tuple[str | int, ...], int] = {}
    while (excess := len(compact(copy)) - limit) > 0 and (found := _largest(copy)):
        holder, where = found
        value = holder[where[-1]]
        cut.setdefault(where, len(value))
        holder[where[-1]] = _without_tail(value, excess)
    return copy, [note for where, total in cut.items() if (note := _note(copy, where, total))]


def _without_tail(value: str | list[Any] | dict[str, Any], excess: int) -> str | list[Any] | dict[str, Any]:
    """The value without its last `excess` characters of JSON, or without its second half if that is less."""
    if isinstance(value, str):
        return value[: max(len(value) - excess - 1, len(value) // 2, SHORTEST_TEXT)].rstrip("…") + "…"
    entries = list(value.items()) if isinstance(value, dict) else list(value)
    keep = len(entries)
    while keep > len(entries) // 2 and excess > 0:
        keep -= 1
        excess -= len(compact(entries[keep])) + 1
    return dict(entries[:keep]) if isinstance(value, dict) else entries[:keep]


def keep_whole_result(tool: str, data: dict[str, Any]) -> Path:
    """Write the full result under the store, named by its content, so that equal results share one file."""
    text = json.dumps(data, ensure_ascii=False, indent=1)
    target = private_folder(paths.home() / "results") / f"{tool}-{hashlib.sha256(text.encode()).hexdigest()[:12]}.json"
    write_text(target, text)
    return target


def _largest(data: dict[str, Any]) -> tuple[Any, tuple[str | int, ...]] | None:
    """What may be halved and has the most JSON characters: (the object that holds it, its path)."""
    best: tuple[int, Any, tuple[str | int, ...]] | None = None
    stack: list[tuple[Any, tuple[str | int, ...]]] = [(data, ())]
    while stack:
        holder, path = stack.pop()
        for key, child in holder.items() if isinstance(holder, dict) else enumerate(holder):
            if key in KEEP_WHOLE or not isinstance(child, str | list | dict):
                continue
            where = (*path, key)
            if not isinstance(child, str):
                stack.append((child, where))
            size = len(child) if isinstance(child, str) else len(compact(child))
            if _may_halve(key, child) and (best is None or size > best[0]):
                best = (size, holder, where)
    return best[1:] if best else None


def _may_halve(key: str | int, value: str | list[Any] | dict[str, Any]) -> bool:
    if isinstance(value, str):
        return len(value) > SHORTEST_TEXT + 1
    return len(value) > 1 and (isinstance(value, list) or key in OPEN_TABLES)


def _note(data: dict[str, Any], where: tuple[str | int, ...], total: int) -> str:
    """ "findings: 12 of 90 entries"; empty when a later cut removed the part together with what held it."""
    value: Any = data
    for key in where:
        if (isinstance(key, int) and key >= len(value)) or (isinstance(key, str) and key not in value):
            return ""
        value = value[key]
    unit = "characters" if isinstance(value, str) else "entries"
    return f"{'.'.join(map(str, where))}: {len(value)} of {total} {unit}"
