"""suites: what can be measured here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mcp_server.cli.console import Json, emit, stderr, table
from mcp_server.schemas.evidence import SuiteList
from mcp_server.steps.evaluate.listing import suite_list


def register(app: typer.Typer) -> None:
    for command in (suites,):
        app.command()(command)


def suites(
    suite_folder: Annotated[list[str] | None, typer.Option(help="folder with suites of your own; repeat for more")] = None,
    json: Json = False,
) -> int:
    """What can be measured: suites with their size, and the minutes that one model of a billion parameters takes."""
    found = suite_list([Path(folder).resolve() for folder in suite_folder or []])
    emit(found, json, lambda: show_suites(found))
    return 0


def show_suites(found: SuiteList) -> None:
    rows = [
        (s.name, s.capability, s.metric, *(s.prompts.get(split) for split in ("dev", "test")), s.minutes.get("test"))
        for s in found.suites
    ]
    columns = ("suite", "capability", "metric", "dev", "test", "minutes")
    table("Suites (prompts in each split; minutes on test for a model of 1 B)", columns, rows, right=(3, 4, 5))
    stderr.print(found.hint, markup=False, soft_wrap=True)
