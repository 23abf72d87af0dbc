"""How results reach a person: tables and lines on stdout, progress on stderr; JSON on stdout when asked.

Everything that is printed passes here, and here control characters become visible escapes: what a model's files or a program's
log hold must not speak to the terminal.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from pydantic import BaseModel
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

from mcp_server.cli.tables import labelled, laid_out
from mcp_server.schemas.estimate import duration
from mcp_server.schemas.job import JobStatus
from mcp_server.schemas.job import Progress as JobProgress
from mcp_server.system.plain_text import json_printable, one_line, printable


class PlainConsole(Console):
    """A console whose texts hold no control characters."""

    def print(self, *objects: Any, **options: Any) -> None:
        super().print(*(printable(each) if isinstance(each, str) else each for each in objects), **options)

    def on_broken_pipe(self) -> None:
        """The edge ends a command whose reader is gone; the library would end it with the exit code that says no."""
        raise BrokenPipeError


stderr = PlainConsole(stderr=True, highlight=False, emoji=False)
"""Progress, and what is said beside a result."""
stdout = PlainConsole(highlight=False, emoji=False)
"""Results for people."""

LABEL = 9
"""Room for the word in front of a line."""
PLAIN_SECONDS = 30.0

Json = Annotated[bool, typer.Option("--json", help="print the result model on stdout and nothing else")]


def emit(result: BaseModel, as_json: bool, show: Callable[[], None]) -> None:
    """Print the model as JSON, or call `show` for a person."""
    if as_json:
        say_json(result.model_dump_json(indent=2))
    else:
        show()


def say_json(text: str) -> None:
    """JSON on stdout; the few control characters that JSON leaves raw are escaped in it."""
    print(json_printable(text))


def say(text: str) -> None:
    """Text on stdout as it is but for control characters."""
    print(printable(text), end="")


def table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[object]], *, right: Sequence[int] = (), whole: Sequence[int] = ()
) -> None:
    """A small table; None is shown as '–', so that unknown never looks like a value. Columns in `whole` do not wrap."""
    texts = [[one_line(cell(value)) for value in row] for row in rows]
    lines = laid_out([one_line(name) for name in columns], texts, screen(), right=right, whole=whole)
    stdout.print(one_line(title), style="bold", markup=False, soft_wrap=True)
    if any(columns):
        stdout.print(next(lines), style="dim", markup=False, soft_wrap=True)
    for text in lines:
        print(printable(text))


def screen() -> int | None:
    """The terminal's width; None off a terminal, where nothing is wrapped."""
    return stdout.width if stdout.is_terminal else None


def line(label: str, text: str) -> None:
    """`label   text`, wrapped under itself so that it fits the terminal; off a terminal nothing is wrapped."""
    for part in labelled(label, one_line(text), LABEL, screen()):
        print(printable(part))


def cell(value: object) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return str(value)


def size(count: int | None) -> str:
    """Bytes for people: 1.7 GB."""
    if count is None:
        return "–"
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} TB"


@contextmanager
def progress_of(title: str, *, quiet: bool = False) -> Iterator[Callable[[JobStatus], None]]:
    """Follows a job: a bar on a terminal, else a plain line now and then; yields the callback to give to the jobs layer."""
    if quiet or stderr.quiet:
        yield lambda _: None
    elif stderr.is_terminal and not stderr.is_dumb_terminal:
        with _bar(title) as follow:
            yield follow
    else:
        yield _PlainProgress(title)


class _PlainProgress:
    """A line when a new stage begins, and every half minute within one, for logs and pipes."""

    def __init__(self, title: str) -> None:
        self.title, self.stage, self.said = title, "", 0.0

    def __call__(self, status: JobStatus) -> None:
        step, now = status.progress, time.monotonic()
        if step is None or (step.stage == self.stage and now - self.said < PLAIN_SECONDS):
            return
        self.stage, self.said = step.stage, now
        text = f"{self.title}: {step.stage} {_detail(step)}".rstrip()
        for line in (text, *(f"  {leader}" for leader in step.leaders)):
            stderr.print(one_line(line), markup=False, soft_wrap=True)


def _detail(step: JobProgress) -> str:
    done = f"{step.done:g}/{step.total:g} {step.unit}".rstrip() if step.total else ""
    left = f"{duration(step.left_seconds)} left" if step.left_seconds is not None else ""
    return ", ".join(filter(None, (step.message or done, left)))


@contextmanager
def _bar(title: str) -> Iterator[Callable[[JobStatus], None]]:
    bar = Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[detail]}", markup=False),
        TimeElapsedColumn(),
    )
    task = bar.add_task(title, total=None, detail="")
    with Live(bar, console=stderr, transient=True) as live:

        def follow(status: JobStatus) -> None:
            if step := status.progress:
                stage = one_line(f"{title}: {step.stage}")
                bar.update(task, description=stage, total=step.total, completed=step.done, detail=one_line(_detail(step)))
                live.update(Group(bar, Text("\n".join(one_line(leader) for leader in step.leaders))) if step.leaders else bar)

        yield follow
