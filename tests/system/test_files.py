"""Files are whole or absent, and what a killed writer leaves does not stay."""

import os
import subprocess
import sys

from mcp_server.system.files import write_json, write_text

KILLED = """
import os, signal, sys
from pathlib import Path
from mcp_server.system import files
files.os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)
files.write_text(Path(sys.argv[1]), "half")
"""


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def test_what_a_killed_writer_left_goes_with_the_next_write(tmp_path):
    path = tmp_path / "state.json"
    write_text(path, "old")
    subprocess.run([sys.executable, "-c", KILLED, str(path)], check=False)
    assert (len(names(tmp_path)), path.read_text(encoding="utf-8")) == (2, "old")
    write_json(path, {"new": 1})
    assert names(tmp_path) == ["state.json"]


def test_a_living_writer_and_other_files_are_left_alone(tmp_path):
    mine, others = tmp_path / f".state.json.{os.getpid()}-abc", tmp_path / ".state.json.notes"
    for file in (mine, others):
        file.touch()
    write_text(tmp_path / "state.json", "x")
    assert names(tmp_path) == sorted([mine.name, others.name, "state.json"])
