"""Ask mergekit's planner about a recipe, in a process of its own: the `planner` that `validate(deep=True)` takes."""

from __future__ import annotations

from pathlib import Path

from mcp_server.jobs.ask import ask


def ask_planner(text: str, folder: Path) -> list[str]:
    """What mergekit's planner refuses about the recipe, in its own words; [] when it accepts.

    Raises `NotFound` when a source is not on this machine, `RunFailed` when the worker does not answer. Takes 6–20 s.
    """
    return [str(problem) for problem in ask("planner", {"text": text, "folder": str(folder)})["problems"]]
