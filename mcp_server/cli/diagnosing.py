"""diagnose: from a merge that disappoints to the cause."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mcp_server.cli.console import Json, emit, line
from mcp_server.cli.merging import merge_folder
from mcp_server.schemas.diagnosis import Diagnosis
from mcp_server.steps.diagnose import diagnose as diagnose_folder


def register(app: typer.Typer) -> None:
    app.command()(diagnose)


def diagnose(
    out: Annotated[Path, typer.Argument(help="a merged model that disappoints, or a job's id")],
    json: Json = False,
) -> int:
    """Why a merge is bad: causes with their evidence and the next step, from what lies in the folder."""
    found = diagnose_folder(merge_folder(out))
    emit(found, json, lambda: show_diagnosis(found))
    return 0 if found.ok else 1


def show_diagnosis(found: Diagnosis) -> None:
    """Causes first to last; the verdict comes last."""
    for one in found.findings:
        line("cause", f"{one.cause} [{one.code}]")
        line("  seen", one.evidence)
        line("  next", one.next)
    for text in found.unknown:
        line("unknown", text)
    count = len(found.findings)
    told = f"{count} cause{'s' if count > 1 else ''}, the most likely first" if count else "nothing was found against it"
    line("diagnosis", f"{told}; looked at: {', '.join(found.looked_at) or 'nothing'}")
