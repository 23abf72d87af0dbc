"""What commands have in common, given to each as it is registered: `-q`, and `--detach` for those that start a job."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Annotated, Any, TypeVar, get_type_hints

import typer

from mcp_server.cli.console import emit, line, stderr
from mcp_server.errors import BadInput
from mcp_server.schemas.job import JobStatus

Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="results and errors only, no progress and no remarks")]
Detach = Annotated[bool, typer.Option("--detach", help="start it, print the job's id and return; `wait ID` follows it")]
F = TypeVar("F", bound=Callable[..., Any])

_detached: ContextVar[bool] = ContextVar("detached", default=False)


class Detached(Exception):
    """Leaves a command whose job was started with `--detach`."""

    def __init__(self, status: JobStatus) -> None:
        self.status = status


def starts_job(command: F) -> F:
    """Give a command `--detach`: `foreground` then starts its job and leaves."""
    command.starts_job = True  # type: ignore[attr-defined]
    return command


def detaching() -> bool:
    """Whether the running command was given `--detach`."""
    return _detached.get()


def waits(option: str) -> None:
    """Raise `BadInput` when `--detach` stands beside an option that needs the result."""
    if detaching():
        raise BadInput(f"{option} needs the result, and --detach does not wait for it", "leave out one of the two")


class Commands(typer.Typer):
    """A Typer whose commands have the options above and hand their exit code on."""

    def command(self, name: str | None = None, **options: Any) -> Callable[[F], F]:
        def register(command: F) -> F:
            typer.Typer.command(self, name, **options)(_with_manners(command))
            return command

        return register


def _with_manners(command: Callable[..., Any]) -> Callable[..., Any]:
    hints = get_type_hints(command, include_extras=True)
    signature = inspect.signature(command)
    added = {"quiet": Quiet} | ({"detach": Detach} if getattr(command, "starts_job", False) else {})
    kind = inspect.Parameter.KEYWORD_ONLY
    extra = [inspect.Parameter(name, kind, default=False, annotation=note) for name, note in added.items()]

    @functools.wraps(command)
    def run(**arguments: Any) -> Any:
        quiet, detach = arguments.pop("quiet"), arguments.pop("detach", False)
        with _manners(quiet, detach):
            try:
                return command(**arguments)
            except Detached as left:
                emit(left.status, bool(arguments.get("json")), functools.partial(show_started, left.status))
                return 0

    run.__annotations__ = {**hints, **added}
    run.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[*(p.replace(annotation=hints[p.name]) for p in signature.parameters.values()), *extra]
    )
    return run


def show_started(job: JobStatus) -> None:
    line("started", job.job_id)
    line("next", f"model-merging wait {job.job_id}")


@contextmanager
def _manners(quiet: bool, detach: bool) -> Iterator[None]:
    before, token = stderr.quiet, _detached.set(detach)
    stderr.quiet = before or quiet
    try:
        yield
    finally:
        stderr.quiet = before
        _detached.reset(token)
