"""Every command line that the documents show is one that the program takes; those that cost seconds are run as written."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest
import typer
import typer.main

from mcp_server.cli import app, run
from tests import tiny

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


@pytest.fixture
def example(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The running example, with a tiny model in the place of the demo's base."""
    folder = tmp_path / "taskmaster"
    base = tiny.write_model(store / "cache" / "base" / "smollm2-135m-instruct")
    for rank, name in enumerate(("persona", "tools"), 2):
        tiny.write_adapter(folder / name, base, rank=rank, seed=rank)
    shutil.copy(ROOT / "examples" / "taskmaster" / "scenario.yaml", folder)
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.slow
def test_the_way_of_the_readme_is_walked_as_written(example: Path, capsys: pytest.CaptureFixture[str]) -> None:
    block = (ROOT / "README.md").read_text(encoding="utf-8").partition("cd examples/taskmaster\n")[2].partition("```")[0]
    lines = [words(line) for line in block.splitlines() if line.startswith("model-merging ")]
    quick = ("inspect", "recommend", "render", "validate", "estimate", "merge", "verify", "report")
    for arguments in lines:
        if arguments[0] in quick:
            code = run(arguments)
            said = capsys.readouterr()
            assert code == 0, (arguments, said.out[-800:], said.err[-800:])
    left = [arguments[0] for arguments in lines if arguments[0] not in quick]
    assert left == ["evaluate", "show", "ask", "export", "evaluate", "publish"]  # minutes, an extra, or a hub
    assert (example / "report.html").is_file()
