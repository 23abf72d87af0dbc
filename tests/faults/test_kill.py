"""kill -9 of worker, runner, client and all of them: the output is whole or absent, the state is true, nothing is left over."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mcp_server import jobs
from mcp_server.jobs import process
from mcp_server.jobs import store as stored
from tests.jobs.watching import LONG, ended, reports_progress, until
from tests.wire import HANDSHAKE, Wire


def kill(identity: process.ProcessId) -> None:
    os.kill(identity.pid, signal.SIGKILL)
    assert process._wait_gone(identity, 5.0)


def blocked(start, tmp_path, **more):
    """A fake merge that blocks in its first attempt and goes through in its second."""
    started = start({"do": "block", "once": str(tmp_path / "once")}, **more)
    until(started.job_id, reports_progress)
    return started.job_id, stored.read(stored.find(started.job_id))


def test_a_killed_worker_is_reported_as_ended_from_outside_and_resumes(merge, tmp_path):
    job_id, record = blocked(merge, tmp_path)
    kill(record.worker)
    found = jobs.wait(job_id, LONG)
    assert (found.state, found.error["type"]) == ("interrupted", "RunFailed")
    assert "ended from outside (SIGKILL)" in found.error["message"]
    assert jobs.wait(jobs.resume(job_id).job_id, LONG).state == "succeeded"


def test_a_killed_runner_takes_its_worker_with_it_and_the_job_resumes(merge, tmp_path):
    job_id, record = blocked(merge, tmp_path)
    kill(record.runner)
    found = jobs.status(job_id)
    assert (found.state, "runner of job" in found.error["message"]) == ("interrupted", True)
    assert process._wait_gone(record.worker, 5.0), "an orphan went on writing"
    assert jobs.wait(jobs.resume(job_id).job_id, LONG).state == "succeeded"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["home", "model", "once", "out"]


def test_runner_and_worker_killed_together(merge, tmp_path):
    job_id, record = blocked(merge, tmp_path)
    kill(record.worker)
    kill(record.runner)
    assert jobs.wait(job_id, LONG).state == "interrupted"
    assert jobs.wait(jobs.resume(job_id).job_id, LONG).state == "succeeded"


def test_a_killed_server_takes_nothing_with_it_and_the_next_one_finds_the_job(merge, store, tmp_path):
    """The server resumes the job, so that the runner is its child; then it is killed."""
    job_id, record = blocked(merge, tmp_path)
    kill(record.runner)
    (tmp_path / "once").unlink()
    first, second = Wire(store, tmp_path), Wire(store, tmp_path)
    first.send(*HANDSHAKE)
    first.call(1, "resume_merge", job_id=job_id)
    assert first.result_of(1)["state"] in ("queued", "running")
    until(job_id, lambda status: status.state == "running" and (tmp_path / "once").exists())
    first.kill()
    second.send(*HANDSHAKE)
    second.call(1, "merge_status", job_id=job_id)
    assert second.result_of(1)["state"] == "running"
    second.call(2, "cancel_merge", job_id=job_id)
    assert second.result_of(2)["state"] == "cancelled"
    assert second.leave() == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["home", "model", "once"]


def test_cancelling_a_job_whose_runner_was_killed_cleans_up_after_it(merge, tmp_path):
    job_id, record = blocked(merge, tmp_path)
    kill(record.runner)
    assert jobs.cancel(job_id).state == "cancelled"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["home", "model", "once"]


def test_a_grandchild_dies_with_the_group_when_its_worker_is_killed(job, tmp_path):
    pid_file = tmp_path / "pid"
    started = job({"do": "child", "pid_file": str(pid_file)}, {"do": "block"})
    until(started.job_id, reports_progress)
    child = process.identify(int(pid_file.read_text(encoding="utf-8")))
    kill(stored.read(stored.find(started.job_id)).worker)
    assert jobs.wait(started.job_id, LONG).state == "interrupted"
    assert process._wait_gone(child, 5.0)


@pytest.mark.parametrize("step", ["done", "renamed", "published"])
def test_a_runner_killed_while_it_publishes_goes_on_where_it_was(step, merge, tmp_path):
    """The three moments of publishing, made by hand from a finished job: each resumes to the same output."""
    first = ended(merge().job_id)
    folder, out = stored.find(first.job_id), tmp_path / "out"
    record = stored.read(folder)
    if step != "published":
        (folder / "published.json").unlink()
    if step == "done":
        out.rename(record.partial)
    stored.write(folder, record.model_copy(update={"state": "running", "finished": None}))
    assert jobs.status(first.job_id).state == "interrupted"
    again = jobs.wait(jobs.resume(first.job_id).job_id, LONG)
    assert (again.state, again.result) == ("succeeded", first.result)
    assert sorted(p.name for p in out.iterdir()) == ["config.json", "merge_provenance.json", "model.safetensors"]
    assert not Path(record.partial).exists()


def test_a_client_that_lives_on_collects_no_zombies(store):
    code = """
from pathlib import Path
from mcp_server import jobs
from tests.fake_worker import scripted
for _ in range(3):
    jobs.wait(jobs.start(scripted("verify"), worker="tests.fake_worker").job_id, 300)
import os, time
deadline = time.monotonic() + 300
def children():
    return Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
while children() and time.monotonic() < deadline:
    time.sleep(0.01)
print(len(children()))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "0"
