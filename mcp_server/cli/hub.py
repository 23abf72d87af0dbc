"""fetch: what a hub holds, into the local cache where every other command finds it by its id."""

from __future__ import annotations

from typing import Annotated

import typer

from mcp_server.cli.console import Json, emit, line, stderr
from mcp_server.cli.evidence import run_job
from mcp_server.cli.manners import starts_job
from mcp_server.formats.refs import demo_aliases
from mcp_server.schemas.hub import Fetched, MadeBase
from mcp_server.schemas.job import FetchRequest


def register(app: typer.Typer) -> None:
    app.command()(fetch)


@starts_job
def fetch(
    ref: Annotated[str, typer.Argument(help="hub id: owner/name, or owner/name@revision; or demo:smollm2-135m-instruct")],
    with_base: Annotated[bool, typer.Option(help="for an adapter, also fetch the base that it names")] = True,
    json: Json = False,
) -> int:
    """Download a model or adapter, resumable; a Ctrl-C or a cut connection loses nothing. Afterwards its id works everywhere."""
    result = run_job(FetchRequest(ref=ref, with_base=with_base), quiet=json)
    if ref in demo_aliases():
        made = MadeBase.model_validate(result)
        emit(made, json, lambda: line("made" if made.built else "is there", made.path))
        return 0
    fetched = Fetched.model_validate(result)
    emit(fetched, json, lambda: show_fetched(fetched))
    return 0


def show_fetched(found: Fetched) -> None:
    for part in filter(None, (found, found.base)):
        said = f"{part.kind} {part.ref}@{part.revision[:12]}: {part.files} files, {part.bytes / 1e6:,.1f} MB, in {part.folder}"
        line("fetched", said)
        for note in part.notes:
            stderr.print(note, markup=False, soft_wrap=True)
    line("next", f"model-merging inspect {found.ref}")
