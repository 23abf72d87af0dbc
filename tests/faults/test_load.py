"""Many calls and many jobs: nothing grows, nothing is lost."""

import os
from pathlib import Path

import pytest

from mcp_server import jobs
from tests import tiny
from tests.faults.conftest import FAKE
from tests.jobs.watching import until
from tests.wire import HANDSHAKE, Wire

pytestmark = pytest.mark.slow


def resident_bytes(pid: int | str = "self") -> int:
    return int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


def descriptors(pid: int | str = "self") -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def test_ten_thousand_status_calls_leave_memory_and_descriptors_flat(job, tmp_path):
    running = job({"do": "wait_for", "path": str(tmp_path / "go")})
    until(running.job_id, lambda s: s.progress is not None)
    finished = jobs.wait(job().job_id, 30)

    def ask(times):
        for _ in range(times):
            jobs.status(running.job_id)
            jobs.status(finished.job_id)

    ask(500)
    memory, handles = resident_bytes(), descriptors()
    ask(5_000)
    assert descriptors() == handles
    assert resident_bytes() <= memory * 1.05
    (tmp_path / "go").touch()


def test_a_server_that_is_asked_ten_thousand_times_stays_as_it_was(job, store, tmp_path):
    """The same over the wire: half the calls are for a job that runs, half for one that is over."""
    running = job({"do": "block"})
    until(running.job_id, lambda s: s.progress is not None)
    finished = jobs.wait(job().job_id, 30)
    server = Wire(store, tmp_path)
    server.send(*HANDSHAKE)
    asked = 0

    def ask(times: int) -> None:
        nonlocal asked
        for _ in range(times):
            asked += 1
            expected = running if asked % 2 else finished
            server.call(asked, "merge_status", job_id=expected.job_id)
            answer = server.result_of(asked)
            assert (answer["job_id"], answer["state"]) == (expected.job_id, "running" if asked % 2 else "succeeded")

    ask(1_000)
    pid = server.process.pid
    memory, handles = resident_bytes(pid), descriptors(pid)
    ask(10_000)
    assert descriptors(pid) == handles
    assert resident_bytes(pid) <= memory * 1.05
    assert server.leave() == 0


def test_two_hundred_queued_merges_are_all_accounted_for(store, tmp_path, monkeypatch):
    from mcp_server.schemas.job import MergeRequest

    monkeypatch.setenv("MODEL_MERGING_MAX_RUNNING", "2")
    recipe = tiny.linear_recipe(tiny.write_model(tmp_path / "model"))
    memory = handles = None
    ids = []
    for n in range(200):
        request = MergeRequest(recipe=recipe, out=str(tmp_path / f"out{n:03d}"), engine="stream", seed=n)
        ids.append(jobs.start_merge(request, worker=FAKE).job_id)
        if n == 50:
            memory, handles = resident_bytes(), descriptors()
    assert resident_bytes() <= memory * 1.05
    assert descriptors() <= handles + 2
    for job_id in ids:
        assert jobs.wait(job_id, 600).state == "succeeded"
    listed = [j.job_id for offset in range(0, 200, 50) for j in jobs.list_jobs(offset=offset, limit=50).jobs]
    assert sorted(listed) == sorted(ids)
    assert len(list(tmp_path.glob("out*"))) == 200
    assert [p.name for p in tmp_path.glob(".*")] == []
    assert list((store / "jobs" / ".active").iterdir()) == []
