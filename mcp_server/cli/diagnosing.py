"""diagnose: from a merge that disappoints to the cause."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mcp_server.cli.console import Json, emit, stderr
from mcp_server.schemas.diagnosis import Diagnosis
from mcp_server.steps.diagnose import diagnose as diagnose_folder


def register(app: typer.Typer) -> None:
    app.command()(diagnose)


def diagnose(
    out: Annotated[Path, typer.Argument(help="a merged model that disappoints, or that you doubt")],
    json: Json = False,
) -> int:
    """Why a merge is bad: causes with their evidence and the next step, from what lies in the folder."""
    found = diagnose_folder(out.resolve())
    emit(found, json, lambda: show_diagnosis(found))
    return 0 if found.ok else 1


def show_diagnosis(found: Diagnosis) -> None:
    for text in found.unknown:
        stderr.print(f"not known: {text}", markup=False, soft_wrap=True)
    for number, one in enumerate(found.findings, 1):
        print(f"{number}. {one.cause} [{one.code}]\n   seen: {one.evidence}\n   next: {one.next}")
    if found.ok:
        print("nothing was found against it in " + ", ".join(found.looked_at or ["what lies in the folder"]))
