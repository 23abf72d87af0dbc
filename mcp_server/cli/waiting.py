"""wait: follow a job that was started with `--detach`, or by an agent, and show what its own command would have shown."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import typer

from mcp_server import jobs as store
from mcp_server.cli.console import Json, emit, progress_of
from mcp_server.cli.evidence import (
    EXIT_OF_EVALUATION,
    EXIT_OF_VERIFICATION,
    show_comparison,
    show_evaluation,
    show_sweep,
    show_verification,
)
from mcp_server.cli.hub import exit_of_export, show_exported, show_fetched, show_made, show_published
from mcp_server.cli.merging import RESULTS as MODELS
from mcp_server.cli.merging import finish, result_of, show_merge
from mcp_server.cli.replies import print_answers
from mcp_server.schemas.job import JobStatus


def register(app: typer.Typer) -> None:
    app.command()(wait)


def wait(job_id: Annotated[str, typer.Argument(help="as --detach printed it, or as `jobs` lists it")], json: Json = False) -> int:
    """Follow a job of any kind until it is over, then its result and its exit code; Ctrl-C leaves it running."""
    with progress_of(job_id.partition("-")[0], quiet=json) as follow:
        ended = store.wait(job_id, on_progress=follow)
    if code := finish(ended):
        return code
    return show_result(ended, json)


def show_result(ended: JobStatus, as_json: bool) -> int:
    """What a job that succeeded found, as its own command shows it, and that command's exit code."""
    show, code = RESULTS[ended.kind]
    found = MODELS[ended.kind].model_validate(result_of(ended))
    emit(found, as_json, lambda: show(found))
    return code(found)


RESULTS: dict[str, tuple[Callable[[Any], None], Callable[[Any], int]]] = {
    "merge": (show_merge, lambda _: 0),
    "compare": (show_comparison, lambda _: 0),
    "verify": (show_verification, lambda found: EXIT_OF_VERIFICATION[found.verdict]),
    "evaluate": (show_evaluation, lambda found: EXIT_OF_EVALUATION[found.verdict]),
    "sweep": (show_sweep, lambda found: 0 if found.winner else 1),
    "ask": (print_answers, lambda _: 0),
    "prepare": (show_made, lambda _: 0),
    "fetch": (show_fetched, lambda _: 0),
    "export": (show_exported, exit_of_export),
    "publish": (show_published, lambda _: 0),
}
"""Kind of job → how a person sees its result, and the exit code."""
