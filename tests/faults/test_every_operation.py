"""No file operation that fails brings a traceback, a lost file or half an output: those of every command and tool in turn."""

import errno
import re

import pytest

from mcp_server import cli
from tests.faults.every_operation import DOCUMENT, MARKS, SCENES, run

WRITING = ["recommend", "--fix", "--overwrite", "report merged", "tool inspect_models", "runner of a merge", "worker of a merge"]


def wrong(words: list[str], sample: int | None) -> dict[str, list[str]]:
    found = run(words, sample)
    assert all(tried.attempts for tried in found)
    return {tried.name: tried.wrong for tried in found if tried.wrong}


def test_a_sample_of_the_operations_of_commands_that_write():
    assert wrong(WRITING, 3) == {}


@pytest.mark.slow
@pytest.mark.parametrize("scene", [scene.name for scene in SCENES])
def test_every_operation_of_every_command_and_tool(scene):
    assert wrong([scene], None) == {}


def test_every_command_and_tool_has_a_scene():
    """But for serve, which becomes another program, and demo, which runs the steps of the rest."""
    from mcp_server.server.tools import all_tools

    commands = {command.name or command.callback.__name__ for command in cli.app.registered_commands}
    words = {scene.name.split()[0] for scene in SCENES}
    tools = {scene.name.split()[1] for scene in SCENES if scene.name.startswith("tool ")}
    assert commands - words == {"serve", "demo"}
    assert {tool.name for tool in all_tools()} - tools == set()


def test_the_counts_in_the_document_are_of_these_commands():
    text = DOCUMENT.read_text(encoding="utf-8")
    counts = text[text.index(MARKS[0]) : text.index(MARKS[1])]
    assert re.findall(r"^\| ([^|]+) \| \d+ \| \d+ \| \d+ \|", counts, re.M) == [scene.name for scene in SCENES]


@pytest.mark.parametrize("command", ["verify", "report", "diagnose", "evaluate", "evaluations", "suites --suite-folder"])
def test_a_link_to_itself_is_said_in_our_words(command, store, tmp_path, capsys):
    (tmp_path / "loop").symlink_to("loop")
    assert cli.run([*command.split(), str(tmp_path / "loop")]) == 2
    assert "loop is a link that leads back to itself" in " ".join(capsys.readouterr().err.split())


def test_a_reader_that_left_is_not_an_answer_of_no(store, capsys, monkeypatch):
    def gone(*_):
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    monkeypatch.setattr("sys.stdout.write", gone)
    with pytest.raises(BrokenPipeError):
        cli.run(["strategies"])
