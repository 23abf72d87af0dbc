"""A store of 10,000 jobs answers at once; its index is a help that may be lost, and getters start nothing."""

import time

import pytest

from mcp_server import jobs
from mcp_server.jobs import store as stored
from mcp_server.system import paths
from tests.jobs.crowd import fill
from tests.jobs.watching import LONG

COUNT = 10_000


@pytest.fixture(scope="module")
def crowd(tmp_path_factory):
    home = tmp_path_factory.mktemp("crowd")
    fill(home, COUNT)
    return home


def best_of(call, times=5):
    seconds = []
    for _ in range(times):
        begin = time.process_time()
        call()
        seconds.append(time.process_time() - begin)
    return min(seconds)


def test_ten_thousand_jobs_are_listed_and_asked_within_50_ms(crowd, monkeypatch):
    monkeypatch.setenv("MODEL_MERGING_HOME", str(crowd))
    newest = jobs.list_jobs(limit=20).jobs[0].job_id
    assert jobs.list_jobs(state="failed").total == COUNT // 3  # the first one builds the index
    assert best_of(lambda: jobs.list_jobs(limit=20)) < 0.05
    assert best_of(lambda: jobs.list_jobs(state="failed", limit=20)) < 0.05
    assert best_of(lambda: jobs.status(newest)) < 0.05


def test_a_damaged_index_changes_no_answer(crowd, monkeypatch):
    monkeypatch.setenv("MODEL_MERGING_HOME", str(crowd))
    index = paths.jobs_dir() / ".ended"
    index.write_bytes(b"\xff\x00 nonsense\nmerge-20260101-000000-0000 no-such-state\n" * 3)
    assert jobs.list_jobs(state="succeeded").total == COUNT // 3 + 1
    assert jobs.list_jobs(state="cancelled").total == COUNT // 3


def test_a_job_that_ends_otherwise_after_a_resume_is_listed_as_it_ended(job, tmp_path):
    started = job({"do": "fail_until", "path": str(tmp_path / "now")})
    assert jobs.wait(started.job_id, LONG).state == "failed"
    assert [j.job_id for j in jobs.list_jobs(state="failed").jobs] == [started.job_id]
    (tmp_path / "now").touch()
    jobs.resume(started.job_id)
    assert jobs.wait(started.job_id, LONG).state == "succeeded"
    assert (jobs.list_jobs(state="failed").total, jobs.list_jobs(state="succeeded").total) == (0, 1)


def test_getters_start_nothing(job, monkeypatch):
    """A job waits although it could run: whoever only looks leaves it waiting, and `resume` moves it on."""
    with monkeypatch.context() as stopped:
        stopped.setattr("mcp_server.jobs.queue.spawn", lambda *_: None)
        waiting = job({"do": "progress"})
    assert jobs.status(waiting.job_id).state == "queued"
    assert [j.state for j in jobs.list_jobs().jobs] == ["queued"]
    assert jobs.list_jobs(state="queued").total == 1
    assert stored.read(stored.find(waiting.job_id)).state == "queued"
    jobs.resume(waiting.job_id)
    assert jobs.wait(waiting.job_id, LONG).state == "succeeded"


def test_housekeeping_reads_an_ended_job_once_and_forgets_it(job, monkeypatch):
    ended = [jobs.wait(job().job_id, LONG).job_id for _ in range(3)]
    looked, read = [], stored.read
    monkeypatch.setattr(stored, "read", lambda folder, **more: looked.append(folder.name) or read(folder, **more))
    assert jobs.prune() == 3
    assert sorted(looked) == sorted(ended)
    assert stored.ended() == {}


def test_housekeeping_leaves_what_an_active_job_names(job, tmp_path):
    first, _ = (jobs.wait(job().job_id, LONG).job_id for _ in range(2))
    blocked = job({"do": "block"}, reads_later=str(paths.jobs_dir() / first / "result.json")).job_id
    assert jobs.prune() == 1
    assert sorted(stored.names()) == sorted([first, blocked])
    jobs.cancel(blocked)
    assert jobs.prune() == 2
