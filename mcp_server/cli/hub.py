"""fetch: what a hub holds, into the local cache where every other command finds it by its id."""

from __future__ import annotations

from typing import Annotated

import typer

from mcp_server.cli.console import Json, stderr
from mcp_server.cli.evidence import run_job
from mcp_server.schemas.hub import Fetched
from mcp_server.schemas.job import FetchRequest


def register(app: typer.Typer) -> None:
    app.command()(fetch)


def fetch(
    ref: Annotated[str, typer.Argument(help="hub id: owner/name, or owner/name@revision")],
    with_base: Annotated[bool, typer.Option(help="for an adapter, also fetch the base that it names")] = True,
    json: Json = False,
) -> int:
    """Download a model or adapter, resumable; a Ctrl-C or a cut connection loses nothing. Afterwards its id works everywhere."""
    found = Fetched.model_validate(run_job(FetchRequest(ref=ref, with_base=with_base), quiet=json))
    if json:
        print(found.model_dump_json(indent=2))
        return 0
    for part in filter(None, (found, found.base)):
        print(f"{part.kind} {part.ref}@{part.revision[:12]}: {part.files} files, {part.bytes / 1e6:,.1f} MB, in {part.folder}")
        for note in part.notes:
            stderr.print(note, markup=False, soft_wrap=True)
    print(f"next: model-merging inspect {found.ref}")
    return 0
