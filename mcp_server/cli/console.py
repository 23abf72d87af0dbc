"""How results reach a person: rich tables and progress bars on stderr; JSON on stdout when asked.

Everything that is printed passes here, and here control characters become visible escapes: what a model's files or a program's
log hold must not speak to the terminal.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, Literal

import typer
from pydantic import BaseModel
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from mcp_server.schemas.job import JobStatus
from mcp_server.system.plain_text import json_printable, one_line, printable


class PlainConsole(Console):
    """A console whose texts hold no control characters."""

    def print(self, *objects: Any, **options: Any) -> None:
        super().print(*(printable(each) if isinstance(each, str) else each for each in objects), **options)


stderr = PlainConsole(stderr=True, highlight=False, emoji=False)
"""Progress, and what is said beside a result."""
stdout = PlainConsole(highlight=False, emoji=False)
"""Results for people."""

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
    view = Table(title=title, title_justify="left", title_style="bold", header_style="dim")
    for index, name in enumerate(columns):
        column = one_line(name)
        longest_word = max((len(word) for word in column.split()), default=0)
        justify: Literal["left", "right"] = "right" if index in right else "left"
        view.add_column(column, justify=justify, overflow="fold", min_width=longest_word, no_wrap=index in whole)
    for row in rows:
        view.add_row(*(Text(one_line(cell(value))) for value in row))
    stdout.print(view, markup=False)


def line(label: str, text: str) -> None:
    """`label   text`, wrapped under itself so that it fits the terminal; off a terminal nothing is wrapped."""
    text = one_line(text)
    if not stdout.is_terminal:
        print(f"{label:<10}{text}")
        return
    room = max(40, stdout.width - 10)
    for number, part in enumerate(textwrap.wrap(text, room, break_long_words=False, break_on_hyphens=False) or [""]):
        print(f"{label if number == 0 else '':<10}{part}")


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
    """A progress bar that follows a job; yields the callback to give to the jobs layer."""
    bar = Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[detail]}", markup=False),
        TimeElapsedColumn(),
        console=stderr,
        disable=quiet,
        transient=True,
    )
    with bar:
        task = bar.add_task(title, total=None, detail="")

        def follow(status: JobStatus) -> None:
            if step := status.progress:
                detail = step.message or (f"{step.done:g}/{step.total:g} {step.unit}" if step.total else "")
                stage = one_line(f"{title}: {step.stage}")
                bar.update(task, description=stage, total=step.total, completed=step.done, detail=one_line(detail))

        yield follow
