"""How results reach a person: rich tables and progress bars on stderr; JSON on stdout when asked."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Literal

import typer
from pydantic import BaseModel
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from mcp_server.schemas.job import JobStatus

stderr = Console(stderr=True, highlight=False)

Json = Annotated[bool, typer.Option("--json", help="print the result model on stdout and nothing else")]


def emit(result: BaseModel, as_json: bool, show: Callable[[], None]) -> None:
    """Print the model as JSON, or call `show` for a person."""
    if as_json:
        print(result.model_dump_json(indent=2))
    else:
        show()


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]], *, right: Sequence[int] = ()) -> None:
    """A small table; None is shown as '–', so that unknown never looks like a value."""
    view = Table(title=title, title_justify="left", title_style="bold", header_style="dim")
    for index, column in enumerate(columns):
        longest_word = max((len(word) for word in column.split()), default=0)
        justify: Literal["left", "right"] = "right" if index in right else "left"
        view.add_column(column, justify=justify, overflow="fold", min_width=longest_word)
    for row in rows:
        view.add_row(*(cell(value) for value in row))
    stderr.print(view, markup=False)


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
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[detail]}"),
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
                bar.update(task, description=f"{title}: {step.stage}", total=step.total, completed=step.done, detail=detail)

        yield follow
