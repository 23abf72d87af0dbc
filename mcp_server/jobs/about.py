"""What a job is about, in one line for people and agents: "task_arithmetic of persona, tools → ./merged"."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mcp_server.errors import MergingError
from mcp_server.formats.recipe import read_recipe
from mcp_server.jobs.store import Record
from mcp_server.system import files

MOST = 160


def about(folder: Path, record: Record) -> str:
    """From the job's own request; an empty text when it cannot be read."""
    try:
        wanted = files.read_json(folder / "request.json")["parameters"]
        text = _described(record, wanted)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, MergingError):
        return ""
    return text if len(text) <= MOST else text[: MOST - 1] + "…"


def subject(folder: Path, record: Record) -> str | None:
    """The folder that a job writes or looks at."""
    if record.output is not None:
        return record.output
    try:
        out = files.read_json(folder / "request.json")["parameters"].get("out")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return out if isinstance(out, str) else None


def _described(record: Record, wanted: dict[str, Any]) -> str:
    if record.kind == "merge":
        recipe = read_recipe(str(wanted["recipe"]))
        stages = {stage.name for stage in recipe.stages}
        sources = [r.adapter or r.base for r in recipe.references() if r != recipe.base and r.base not in stages]
        return f"{recipe.method} of {', '.join(dict.fromkeys(map(_name, sources))) or 'its base'}"
    if record.kind == "compare":
        return f"{', '.join(_name(ref) for ref in wanted['refs'])} on {_name(wanted['base'])}"
    if record.kind == "sweep":
        return f"sweep of {_name(str(wanted['plan']))}"
    if record.kind == "evaluate":
        suites = ", ".join(_name(name) for name in wanted.get("suites") or []) or "its own suites"
        cross = ", and in each other's contexts" if wanted.get("cross") else ""
        return f"{_name(wanted.get('out') or 'the sources alone')} on {suites}{cross}"
    if record.kind == "ask":
        return f"{_name(str(wanted['out']))}, its sources and base: {wanted['text']}"
    if record.kind == "export":
        return f"{_name(str(wanted['out']))} for {wanted['to']}{' as ' + wanted['quant'] if wanted.get('quant') else ''}"
    if record.kind == "publish":
        return f"{_name(str(wanted['out']))} as {wanted['repo']}"
    return _name(str(wanted.get("out") or wanted.get("ref") or ""))


def _name(ref: str) -> str:
    return Path(ref.rpartition("+")[2]).name
