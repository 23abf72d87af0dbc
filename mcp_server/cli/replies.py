"""show, ask: what base, sources and merge say, side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from mcp_server.cli.console import Json, emit, line, stdout, table
from mcp_server.cli.evidence import anchored_pair, run_job
from mcp_server.cli.manners import starts_job
from mcp_server.cli.merging import merge_folder
from mcp_server.schemas.job import AskRequest
from mcp_server.schemas.replies import Answers, Outcome, PromptReplies, ShownReplies
from mcp_server.steps.evaluate.replies import show_replies
from mcp_server.system.plain_text import one_line


def register(app: typer.Typer) -> None:
    for command in (show, ask):
        app.command()(command)


def show(
    out: Annotated[Path, typer.Argument(help="an evaluated merge, or a job's id")],
    suite: Annotated[str | None, typer.Option(help="only this suite")] = None,
    split: Annotated[Literal["dev", "test"] | None, typer.Option(help="only this split")] = None,
    only: Annotated[
        Outcome | None,
        typer.Option(help="loss: the merge scores below the suite's best source; win: above; differs: only in words"),
    ] = None,
    find: Annotated[str | None, typer.Option(help="only prompts with this text in prompt, answer or reply")] = None,
    limit: Annotated[int, typer.Option(min=1, help="prompts that are shown")] = 10,
    offset: Annotated[int, typer.Option(min=0, help="prompts that are passed over")] = 0,
    json: Json = False,
) -> int:
    """Replies of base, sources and merge on the same prompts, losses first: what a figure looks like."""
    found = show_replies(
        merge_folder(out), suite=suite, split=split, outcome=only, find=find, offset=offset, limit=limit
    )  # fmt: skip
    emit(found, json, lambda: print_replies(found))
    return 0


def print_replies(found: ShownReplies) -> None:
    rows = [(name, t.prompts, t.losses, t.wins, t.differs, t.expert) for name, t in found.suites.items()]
    columns = ("suite", "prompts", "losses", "wins", "other words", "against")
    table("The merge against each suite's best source", columns, rows, right=(1, 2, 3, 4))
    for one in found.replies:
        stdout.print()
        stdout.print(f"{one.outcome}  {one.suite} ({one.split})", style="bold", markup=False, soft_wrap=True)
        _print_one(one)
    if found.current is False:
        line("note", "the merge's files have changed since: measure again with `model-merging evaluate OUT`")
    if found.next_offset is not None:
        line("more", f"{found.found - found.next_offset} more: --offset {found.next_offset}, or --limit {found.found}")


def _print_one(one: PromptReplies) -> None:
    wide = max(map(len, ["expected", *one.replies]))
    texts = {"prompt": one.prompt, "expected": one.expected, **one.replies}
    for label, text in texts.items():
        if text or label in one.replies:
            score = f"  [{one.scores[label]:.3g}]" if label in one.scores else ""
            stdout.print(f"  {label:<{wide}}  {one_line(text) or '(nothing)'}{score}", markup=False, soft_wrap=True)


@starts_job
def ask(
    out: Annotated[Path, typer.Argument(help="a merged model, or a job's id")],
    text: Annotated[str, typer.Argument(help="what to ask")],
    system: Annotated[str | None, typer.Option(help="system prompt")] = None,
    against: Annotated[list[str] | None, typer.Option(help="NAME=REF of base or a source; default: from the provenance")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="where a reply ends at the latest")] = 128,
    json: Json = False,
) -> int:
    """Ask base, sources and merge the same thing at once; replies are greedy, as in an evaluation."""
    request = AskRequest.of(
        {
            "out": str(merge_folder(out)),
            "text": text,
            "system": system,
            "against": dict(anchored_pair(pair) for pair in against or []),
            "max_tokens": max_tokens,
        }
    )
    found = Answers.model_validate(run_job(request, quiet=json))
    emit(found, json, lambda: print_answers(found))
    return 0


def print_answers(found: Answers) -> None:
    for label, reply in found.replies.items():
        stdout.print(label, style="bold", markup=False)
        stdout.print("\n".join(f"  {row}" for row in reply.strip().splitlines()) or "  (nothing)", markup=False, soft_wrap=True)
