"""A job appears whole or not at all, and its record has one writer at a time."""

import os
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mcp_server import jobs
from mcp_server.errors import OutputExists
from mcp_server.jobs import launch, process, queue
from mcp_server.jobs import store as stored
from tests.fake_worker import FAKE, scripted
from tests.jobs.watching import LONG, reports_progress, until


def test_nobody_sees_or_prunes_a_job_that_is_being_made(job, monkeypatch):
    """Without its state a job would look damaged; pruning would take it away from under its maker."""
    seen = []
    write = launch._write_request

    def look_first(*arguments, **more):
        seen.append((jobs.list_jobs().total, jobs.prune()))
        write(*arguments, **more)

    monkeypatch.setattr(launch, "_write_request", look_first)
    assert jobs.wait(job().job_id, LONG).state == "succeeded"
    assert seen == [(0, 0)]


def test_a_job_is_not_started_before_its_maker_is_done_with_it(merge, monkeypatch, tmp_path):
    """Somebody who lists the jobs looks at the queue too; a merge whose output is then refused must not be running."""
    merge({"do": "block"}, out="busy")
    seen = []
    settle = stored.settle

    def settle_and_look(folder):
        place = settle(folder)
        for _ in range(2):  # the first look notices the job, the second would start it
            seen.append([(j.state, j.job_id == place.name) for j in jobs.list_jobs(limit=1).jobs])
        return place

    monkeypatch.setattr(launch.store, "settle", settle_and_look)
    monkeypatch.setenv("MODEL_MERGING_MAX_RUNNING", "5")
    with pytest.raises(OutputExists):
        merge(out="busy")
    assert seen == [[("queued", True)]] * 2
    assert jobs.list_jobs().total == 1


def test_of_two_that_resume_one_job_neither_undoes_the_other(job, tmp_path):
    started = job({"do": "fail"}, {"do": "block"})
    jobs.wait(started.job_id, LONG)
    (stored.find(started.job_id) / "request.json").write_text(
        (stored.find(started.job_id) / "request.json").read_text(encoding="utf-8").replace('"fail"', '"say", "text": "again"'),
        encoding="utf-8",
    )
    with ThreadPoolExecutor(4) as pool:
        states = {found.state for found in pool.map(jobs.resume, [started.job_id] * 4)}
    assert states <= {"queued", "running"}
    until(started.job_id, reports_progress)
    assert stored.read(stored.find(started.job_id)).attempt == 2


def test_what_a_killed_maker_left_is_removed_by_the_next(job):
    left = stored.paths.jobs_dir() / ".new" / "merge-20260101-000000-aaaa"
    left.mkdir(parents=True)
    os.utime(left, (0, 0))
    jobs.wait(job().job_id, LONG)
    assert list(left.parent.iterdir()) == []


def test_a_creation_that_is_refused_leaves_nothing(merge):
    merge({"do": "block"})
    with pytest.raises(OutputExists):
        merge()
    assert jobs.list_jobs().total == 1
    assert list((stored.paths.jobs_dir() / ".new").iterdir()) == []


def test_a_slow_dispatcher_does_not_overwrite_what_the_runner_says(job, monkeypatch):
    """Whoever starts a runner may be stopped right after; the runner's word is the newer one."""

    class Slow(subprocess.Popen):
        def __init__(self, command, **more):
            super().__init__(command, **more)
            if "mcp_server.jobs.runner" in command:
                deadline = time.monotonic() + LONG
                while stored.read(Path(command[-2])).state != "succeeded":
                    assert time.monotonic() < deadline

    monkeypatch.setattr(queue.subprocess, "Popen", Slow)
    assert job().state == "succeeded"


def test_a_runner_is_known_by_its_own_word(job):
    started = job({"do": "block"})
    until(started.job_id, reports_progress)
    record = stored.read(stored.find(started.job_id))
    assert process.is_alive(record.runner) and process.is_alive(record.worker)
    assert stored.runner_of(stored.find(started.job_id), record) == record.runner


def test_a_runner_that_has_only_just_been_started_can_be_ended(job):
    """Its name is known before it has said it: a machine so busy that Python takes seconds to start is no excuse."""
    started = job({"do": "block"})
    folder = stored.find(started.job_id)
    assert stored.runner_of(folder, stored.read(folder)) is not None
    assert jobs.cancel(started.job_id).state == "cancelled"


@pytest.mark.parametrize("kind", ["sweep", "merge"])
def test_a_sweep_has_its_output_for_itself(kind, store, merge, tmp_path):
    request = scripted("sweep", output=str(tmp_path / "out"), script=[{"do": "block"}])
    first = jobs.start(request, worker=FAKE)
    with pytest.raises(OutputExists, match=first.job_id):
        jobs.start(request, worker=FAKE) if kind == "sweep" else merge()
    assert jobs.cancel(first.job_id).state == "cancelled"
    assert list(tmp_path.glob(".*")) == []
