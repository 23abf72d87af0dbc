"""A job from start to end: what is on disk, what is told, who survives whom."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mcp_server import jobs
from mcp_server.errors import BadInput, NotFound, OutputExists
from mcp_server.jobs.process import identify
from tests.jobs.watching import LONG, reports_progress, until


def beside(folder: Path) -> list[str]:
    """Everything that is beside the output: nothing of ours may stay there."""
    return sorted(p.name for p in folder.iterdir() if p.name not in ("home", "model"))


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_a_merge_ends_as_a_whole_folder_and_leaves_nothing_else(merge, tmp_path):
    ended = jobs.wait(merge({"do": "progress", "done": 2, "total": 2}, seed=7).job_id, LONG)
    assert (ended.state, ended.exit_code, ended.error) == ("succeeded", 0, None)
    result = dict(ended.result or {})
    assert result.pop("wall_seconds") > 0
    assert isinstance(result.pop("peak_anon_bytes"), int | None)
    assert result == {
        "job_id": ended.job_id,
        "state": "succeeded",
        "output": str(tmp_path / "out"),
        "engine": "mergekit",
        "seed": 7,
        "tensors": 1,
        "bytes": 5,
        "landed": {},
        "rounding_loss": {},
        "relative_error": None,
        "warnings": [],
    }
    assert beside(tmp_path) == ["out"]
    assert names(tmp_path / "out") == ["config.json", "merge_provenance.json", "model.safetensors"]


def test_the_output_is_not_there_before_it_is_whole(merge, tmp_path):
    started = merge({"do": "write", "name": "half.safetensors", "bytes": 10}, {"do": "wait_for", "path": str(tmp_path / "go")})
    seen = until(started.job_id, reports_progress)
    assert (seen.state, (tmp_path / "out").exists()) == ("running", False)
    assert beside(tmp_path) == [".out.merge-lock", f"out.partial-{started.job_id}"]
    (tmp_path / "go").touch()
    assert jobs.wait(started.job_id, LONG).state == "succeeded"
    assert beside(tmp_path) == ["go", "out"]


@pytest.mark.parametrize("how", ["ends", "is killed"])
def test_a_job_outlives_the_client_that_started_it(how, merge, store, tmp_path):
    code = f"""
import os, signal, sys
from mcp_server import jobs
from tests.fake_worker import scripted
script = [{{"do": "wait_for", "path": {str(tmp_path / "go")!r}}}]
print(jobs.start(scripted("verify", script=script), worker="tests.fake_worker").job_id, flush=True)
if {how == "is killed"}: os.kill(os.getpid(), signal.SIGKILL)
"""
    client = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    job_id = client.stdout.strip()
    assert jobs.status(job_id).state == "running"
    (tmp_path / "go").touch()
    assert jobs.wait(job_id, LONG).state == "succeeded"


def test_a_failure_is_the_workers_own_words(job):
    ended = jobs.wait(job({"do": "fail", "type": "Incompatible", "message": "apples and pears"}).job_id, LONG)
    assert (ended.state, ended.exit_code) == ("failed", 2)
    assert ended.error == {"type": "Incompatible", "message": "apples and pears", "next_step": "", "exit_code": 2, "details": {}}


def test_a_bug_is_told_as_one_and_its_traceback_is_in_the_log(job):
    ended = jobs.wait(job({"do": "bug"}).job_id, LONG)
    assert (ended.state, ended.exit_code) == ("failed", 70)
    assert "a bug ended the worker" in ended.error["message"]
    assert "AssertionError: told to have a bug" in jobs.logs(ended.job_id).text


def test_cancel_ends_the_whole_group_and_removes_the_partial_output(merge, tmp_path):
    pid_file = tmp_path / "pid"
    started = merge(
        {"do": "write", "name": "a.safetensors", "bytes": 10}, {"do": "child", "pid_file": str(pid_file)}, {"do": "block"}
    )
    until(started.job_id, reports_progress)
    stubborn = identify(int(pid_file.read_text(encoding="utf-8")))
    began = time.monotonic()
    ended = jobs.cancel(started.job_id)
    assert time.monotonic() - began < 5
    assert (ended.state, ended.error) == ("cancelled", None)
    assert identify(stubborn.pid) != stubborn
    assert beside(tmp_path) == ["pid"]


def test_cancel_keeps_the_partial_output_when_asked(merge, tmp_path):
    started = merge({"do": "write", "name": "a.safetensors", "bytes": 10}, {"do": "block"})
    until(started.job_id, reports_progress)
    assert jobs.cancel(started.job_id, keep=True).state == "cancelled"
    assert beside(tmp_path) == [f"out.partial-{started.job_id}"]


@pytest.mark.parametrize(("engine", "stays"), [("mergekit", False), ("stream", True)])
def test_a_failed_merge_keeps_its_partial_output_only_if_resuming_goes_on_with_it(engine, stays, merge, tmp_path):
    started = merge({"do": "write", "name": "a.safetensors", "bytes": 10}, {"do": "fail"}, engine=engine)
    assert jobs.wait(started.job_id, LONG).state == "failed"
    assert (tmp_path / f"out.partial-{started.job_id}").exists() is stays
    jobs.prune()
    assert beside(tmp_path) == []


def test_cancelling_what_is_over_changes_nothing(job):
    ended = jobs.wait(job().job_id, LONG)
    assert jobs.cancel(ended.job_id) == ended


def test_an_interrupted_job_goes_on_when_it_is_resumed(merge, tmp_path):
    started = merge({"do": "block", "once": str(tmp_path / "blocked")}, engine="stream")
    until(started.job_id, reports_progress)
    assert jobs.interrupt(started.job_id).state == "interrupted"
    resumed = jobs.wait(jobs.resume(started.job_id).job_id, LONG)
    assert (resumed.state, (tmp_path / "out" / "model.safetensors").is_file()) == ("succeeded", True)


def test_ctrl_c_in_the_foreground_interrupts_and_does_not_lose_the_job(store, tmp_path):
    code = f"""
from mcp_server import jobs
from tests.fake_worker import scripted
script = [{{"do": "block", "once": {str(tmp_path / "blocked")!r}}}]
started = jobs.start(scripted("verify", script=script), worker="tests.fake_worker")
told = []
def tell(status):
    if status.progress and not told:
        told.append(status)
        print(status.job_id, flush=True)
print(jobs.follow(started.job_id, tell).state, flush=True)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as client:
        job_id = client.stdout.readline().strip()
        os.kill(client.pid, signal.SIGINT)
        assert client.stdout.readline().strip() == "interrupted"
    assert jobs.wait(jobs.resume(job_id).job_id, LONG).state == "succeeded"


def test_an_output_that_exists_is_not_touched(merge, tmp_path, store):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    with pytest.raises(OutputExists, match="exists"):
        merge()
    assert (beside(tmp_path), jobs.list_jobs().total) == (["out"], 0)


def test_overwrite_replaces_the_output_only_when_the_new_one_is_whole(merge, tmp_path):
    assert jobs.wait(merge().job_id, LONG).state == "succeeded"
    old = (tmp_path / "out" / "merge_provenance.json").read_bytes()
    failed = jobs.wait(merge({"do": "fail"}, overwrite=True).job_id, LONG)
    assert (failed.state, (tmp_path / "out" / "merge_provenance.json").read_bytes()) == ("failed", old)
    assert jobs.wait(merge(overwrite=True).job_id, LONG).state == "succeeded"
    assert (tmp_path / "out" / "merge_provenance.json").read_bytes() != old
    assert names(tmp_path / "out") == ["config.json", "merge_provenance.json", "model.safetensors"]
    jobs.prune()
    assert beside(tmp_path) == ["out"]


@pytest.mark.parametrize("job_id", ["nobody", "../jobs", "merge-20200101-000000-zzzz", "", "/etc"])
def test_an_unknown_id_is_not_found_wherever_it_points(job_id, store):
    with pytest.raises(NotFound, match="no job"):
        jobs.status(job_id)


def test_jobs_are_listed_newest_first_in_pages(job):
    ids = [jobs.wait(job().job_id, LONG).job_id for _ in range(3)]
    first = jobs.list_jobs(limit=2)
    second = jobs.list_jobs(offset=2, limit=2)
    assert [j.job_id for j in first.jobs + second.jobs] == ids[::-1]
    assert (first.total, first.next_offset, second.next_offset) == (3, 2, None)
    assert jobs.list_jobs(state="failed").jobs == []
    assert jobs.list_jobs(kind="verify", state="succeeded").total == 3


def test_a_finished_job_cannot_be_resumed(job):
    with pytest.raises(BadInput, match="has succeeded"):
        jobs.resume(jobs.wait(job().job_id, LONG).job_id)


def test_prune_removes_what_is_over_and_never_an_output(merge, job, tmp_path):
    done = jobs.wait(merge().job_id, LONG)
    running = job({"do": "block"})
    assert (jobs.prune(), jobs.list_jobs().total) == (1, 1)
    assert Path(done.output).is_dir()
    assert jobs.status(running.job_id).state == "running"
