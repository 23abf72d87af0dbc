"""suites, evaluations: what can be measured here, and what was."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mcp_server.cli.console import Json, emit, stderr, table
from mcp_server.cli.merging import merge_folder
from mcp_server.schemas.evidence import EvaluationList, SuiteList
from mcp_server.steps.evaluate.history import evaluations as runs_of
from mcp_server.steps.evaluate.listing import suite_list


def register(app: typer.Typer) -> None:
    for command in (suites, evaluations):
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


def evaluations(
    out: Annotated[Path, typer.Argument(help="a merged model, or a job's id")],
    json: Json = False,
) -> int:
    """Every evaluation of a merge, newest first: none replaces another."""
    found = runs_of(merge_folder(out))
    emit(found, json, lambda: show_evaluations(found))
    return 0


def show_evaluations(found: EvaluationList) -> None:
    rows = [
        (
            run.created,
            run.split,
            ", ".join(f"{suite} {count}" for suite, count in run.suites.items()),
            ", ".join(f"{name} {'–' if value is None else f'{value:.3g}'}" for name, value in run.merged.items()),
            run.verdict,
            run.current,
        )
        for run in found.runs
    ]
    columns = ("when", "split", "suites and prompts", "the merge's figures", "verdict", "same weights as now")
    table(f"Evaluations of {Path(found.output).name}", columns, rows)
