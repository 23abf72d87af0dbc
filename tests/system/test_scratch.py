"""Scratch folders go with their makers, also with killed ones."""

import os
import subprocess
import sys

from mcp_server.system.files import remove_abandoned, scratch_folder

KILLED = """
import os, signal, sys
from pathlib import Path
from mcp_server.system.files import scratch_folder
with scratch_folder(Path(sys.argv[1]), "work-") as folder:
    (folder / "big").write_text("x")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def age(folder):
    for entry in folder.iterdir():
        os.utime(entry, (0, 0))


def test_it_is_gone_at_the_end_or_where_it_was_renamed_to(tmp_path):
    with scratch_folder(tmp_path, "work-") as folder:
        assert folder.stat().st_mode & 0o077 == 0
    with scratch_folder(tmp_path, "work-") as folder:
        folder.rename(tmp_path / "result")
    assert names(tmp_path) == ["result"]


def test_what_a_killed_maker_left_is_removed_by_the_next_but_not_at_once_and_nothing_else_is(tmp_path):
    (tmp_path / "other").mkdir()
    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False)
    left = names(tmp_path)
    assert len(left) == 2
    remove_abandoned(tmp_path, "work-")
    assert names(tmp_path) == left, "its maker may not have locked it yet"
    age(tmp_path)
    with scratch_folder(tmp_path, "work-") as folder:
        assert names(tmp_path) == ["other", folder.name]


def test_a_folder_in_use_is_left_alone_however_old_it_is(tmp_path):
    with scratch_folder(tmp_path, "work-") as folder:
        age(tmp_path)
        remove_abandoned(tmp_path)
        assert folder.is_dir()
