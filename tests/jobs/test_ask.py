"""A question to a worker leaves nothing behind, whoever is killed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mcp_server import jobs
from mcp_server.errors import BadInput
from mcp_server.jobs.ask import ask
from mcp_server.jobs.process import _wait_gone, identify, tree

CLIENT = "from mcp_server.jobs.ask import ask; ask('planner', {'text': 'a', 'folder': '/'})"


def questions(store: Path) -> list[Path]:
    return list((store / "asks").iterdir()) if (store / "asks").is_dir() else []


def test_a_question_that_fails_leaves_nothing(store):
    with pytest.raises(BadInput, match="the field 'base' is missing"):
        ask("compare", {})
    assert questions(store) == []


def test_what_a_killed_asker_leaves_is_removed_and_its_worker_ends_with_it(store):
    asker = subprocess.Popen([sys.executable, "-c", CLIENT])
    deadline = time.monotonic() + 60
    while len(found := tree(asker.pid)) < 2:
        assert time.monotonic() < deadline
    worker = identify(found[1])
    os.kill(asker.pid, signal.SIGKILL)
    asker.wait()
    assert _wait_gone(worker, 90.0), "the worker goes on for nobody"  # it looks around once its libraries are imported
    (left,) = questions(store)
    jobs.prune()
    assert questions(store) == [left], "an asker may not have locked its folder yet"
    os.utime(left, (0, 0))
    jobs.prune()
    assert questions(store) == []
