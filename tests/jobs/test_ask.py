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
from tests.jobs.watching import LONG

CLIENT = "from mcp_server.jobs.ask import ask; ask('mergekit_planner', {'text': 'a', 'folder': '/'})"
"""mergekit takes seconds to import, so that the worker can be caught at it."""


def questions(store: Path) -> list[Path]:
    return list((store / "asks").iterdir()) if (store / "asks").is_dir() else []


def test_a_question_that_fails_leaves_nothing(store):
    with pytest.raises(BadInput, match="the field 'base' is missing"):
        ask("compare", {})
    assert questions(store) == []


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_what_a_killed_asker_leaves_is_removed_and_its_worker_ends_with_it(store):
    with subprocess.Popen([sys.executable, "-c", CLIENT]) as asker:
        deadline = time.monotonic() + LONG
        while len(found := tree(asker.pid)) < 2:
            assert asker.poll() is None, "it has its answer already"
            assert time.monotonic() < deadline, "it starts no worker"
            time.sleep(0.01)
        worker = identify(found[1])
        while "torch" not in Path(f"/proc/{worker.pid}/maps").read_text(encoding="utf-8"):  # it ties itself to its asker before
            time.sleep(0.01)
        os.kill(worker.pid, signal.SIGSTOP)  # so that it cannot end because its work is done
        os.kill(asker.pid, signal.SIGKILL)
    assert _wait_gone(worker, LONG), "the worker goes on for nobody"
    (left,) = questions(store)
    jobs.prune()
    assert questions(store) == [left], "an asker may not have locked its folder yet"
    os.utime(left, (0, 0))
    jobs.prune()
    assert questions(store) == []
