"""Locks die with their holders, claims with their jobs."""

import json
import os
import subprocess
import sys

import pytest

from mcp_server.errors import OutputExists
from mcp_server.jobs import locks, process, store
from mcp_server.jobs import locks as claims
from mcp_server.jobs.process import ProcessId
from mcp_server.jobs.store import Record

HOLD = """
import sys
from pathlib import Path
from mcp_server.jobs.locks import try_lock
try_lock(Path(sys.argv[1]))
print(1, flush=True)
sys.stdin.read()
"""


def holder(path):
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    process.stdout.readline()
    return process


def test_a_lock_is_free_as_soon_as_its_holder_was_killed(tmp_path):
    path = tmp_path / "lock"
    with holder(path) as other:
        assert (locks.try_lock(path), locks.is_held(path)) == (None, True)
        other.kill()
        other.wait()
        assert locks.is_held(path) is False
        handle = locks.try_lock(path)
        assert handle is not None
        os.close(handle)


def test_a_lock_whose_file_was_removed_is_not_mistaken_for_the_new_one(tmp_path):
    path = tmp_path / "lock"
    first = locks.try_lock(path)
    locks.remove_lock(path, first)
    second = locks.try_lock(path)
    assert (locks.try_lock(path), path.exists()) == (None, True)
    locks.remove_lock(path, second)
    assert list(tmp_path.iterdir()) == []


def queued(job_id, out, state="queued"):
    folder = store.paths.jobs_dir() / job_id
    folder.mkdir(parents=True)
    store.write(folder, Record(job_id=job_id, kind="merge", state=state, created="", output=str(out)))
    return job_id


def test_a_claim_holds_while_its_job_is_queued(store, tmp_path):
    first, second = queued("merge-20260101-000000-aaaa", tmp_path / "out"), "merge-20260101-000000-bbbb"
    claims.claim(tmp_path / "out", first)
    with pytest.raises(OutputExists, match=first):
        claims.claim(tmp_path / "out", second)


@pytest.mark.parametrize("state", ["cancelled", "failed", "interrupted", "succeeded", "running"])
def test_a_claim_ends_with_its_job(state, store, tmp_path):
    """`running` counts as over here: its runner holds no lock, so it is dead."""
    first, second = queued("merge-20260101-000000-aaaa", tmp_path / "out", state), "merge-20260101-000000-bbbb"
    claims.claim(tmp_path / "out", first)
    claims.claim(tmp_path / "out", second)
    assert json.loads((tmp_path / ".out.merge-lock").read_text(encoding="utf-8"))["job_id"] == second


@pytest.mark.parametrize("content", ["", "{", "[]", '{"store": 3}', "null", "\x00" * 100])
def test_a_damaged_claim_claims_nothing(content, store, tmp_path):
    (tmp_path / ".out.merge-lock").write_text(content, encoding="utf-8")
    claims.claim(tmp_path / "out", "merge-20260101-000000-aaaa")


def test_a_reused_pid_is_another_process(tmp_path):
    """The innocent process that has the pid now is neither believed to be ours nor ended."""
    with holder(tmp_path / "lock") as innocent:
        real = process.identify(innocent.pid)
        stale = ProcessId(pid=innocent.pid, start="1@another-boot")
        assert (process.is_alive(real), process.is_alive(stale)) == (True, False)
        assert process.end_group(stale, 0.0) is True
        assert process.is_alive(real)
        innocent.stdin.close()
