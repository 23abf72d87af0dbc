"""Every command line that the documents show is one that the program takes; test_readme_road.py runs the README's."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer
import typer.main

from mcp_server.cli import app

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "skills").rglob("*.md"))]
PAGES += [ROOT / "examples" / "taskmaster" / "README.md", ROOT / "examples" / "one_prompt" / "README.md"]
INLINE = re.compile(r"`(model-merging [^`\n]+)`")
OPEN = re.compile(r"[…|\[\]{}<>]|\.\.\.")
"""Signs of a form that is described, not of a line to type."""


def commands(page: Path) -> list[str]:
    """Lines of fenced blocks and code in sentences, without comments; a backslash goes on with the next line."""
    text = page.read_text(encoding="utf-8")
    blocks = "\n".join(re.findall(r"```(?:bash|sh|console)?\n(.*?)```", text, re.DOTALL)).replace("\\\n", " ")
    lines = [line.removeprefix("$ ").strip() for line in blocks.splitlines()]
    found = [line for line in lines if line.startswith("model-merging ")] + INLINE.findall(text)
    return [line for line in dict.fromkeys(found) if not OPEN.search(line.partition(" #")[0])]


def words(line: str) -> list[str]:
    """The arguments of the first command of a line, as the shell would hand them on."""
    parts = shlex.split(line, comments=True)[1:]
    ends = [n for n, part in enumerate(parts) if part in ("&&", ";", "&", ">")]
    return parts[: ends[0]] if ends else parts


DOCUMENTED = [(page.relative_to(ROOT).as_posix(), line) for page in PAGES for line in commands(page)]


def test_the_documents_are_read() -> None:
    shown = {page for page, _ in DOCUMENTED}
    assert {"README.md", "docs/taskmaster.md", "skills/model-merging/SKILL.md"} <= shown
    named = {words(line)[0] for _, line in DOCUMENTED if words(line)}
    every = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    assert every - named <= {"serve", "jobs", "logs", "cancel", "resume", "suites", "strategies", "status"}


@pytest.mark.parametrize(("page", "line"), DOCUMENTED)
def test_every_documented_command_is_one_that_the_program_takes(page: str, line: str) -> None:
    group = typer.main.get_group(app)
    name, *arguments = words(line) or ["--help"]
    if name.startswith("-"):
        return
    command = group.commands.get(name)
    assert command is not None, f"{page}: {line}"
    if not arguments or any(argument in ("--help", "-h") for argument in arguments):
        return  # named in a sentence
    try:
        command.make_context(name, list(arguments))
    except typer.TyperException as error:
        said = error.format_message()  # a sentence may name the command with nothing but the option that it speaks of
        assert said.startswith("Missing argument"), f"{page}: {line}: {said}"
