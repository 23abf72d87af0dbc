"""A store that is damaged, shared, or lives through clock jumps."""

import os
import subprocess
import sys

import pytest

from mcp_server import jobs
from mcp_server.errors import OutputExists
from mcp_server.jobs import store
from tests import tiny
from tests.jobs.watching import LONG, ended, reports_progress, until
from tests.wire import HANDSHAKE, Wire


@pytest.mark.parametrize("content", [b"", b'{"job_id": "mer', b"\x00" * 512, None], ids=["empty", "cut", "zeros", "missing"])
def test_a_corrupt_status_says_so_and_the_job_can_be_resumed(content, merge, tmp_path):
    job_id = ended(merge({"do": "fail"}).job_id).job_id
    path = store.find(job_id) / "status.json"
    path.unlink() if content is None else path.write_bytes(content)
    found = jobs.status(job_id)
    assert (found.state, found.kind, found.output) == ("interrupted", "merge", str(tmp_path / "out"))
    assert "is lost: its status.json is" in found.error["message"]
    assert jobs.list_jobs().total == 1
    assert jobs.wait(jobs.resume(job_id).job_id, LONG).error["message"] == "told to fail"


def test_a_job_with_a_corrupt_status_can_be_pruned(job):
    job_id = ended(job({"do": "fail"}).job_id).job_id
    (store.find(job_id) / "status.json").write_bytes(b"")
    assert (jobs.prune(), jobs.list_jobs().total) == (1, 0)


def test_a_corrupt_status_of_a_running_job_does_not_hide_that_it_runs(job, tmp_path):
    started = job({"do": "wait_for", "path": str(tmp_path / "go")})
    until(started.job_id, reports_progress)
    (store.find(started.job_id) / "status.json").write_bytes(b"\x00")
    assert jobs.status(started.job_id).state == "running"
    (tmp_path / "go").touch()
    assert jobs.wait(started.job_id, LONG).state == "succeeded"


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"parameters": 3, "worker": "x"}', b"\xff"])
def test_a_damaged_request_is_said_to_be_one(content, job):
    job_id = ended(job({"do": "fail"}).job_id).job_id
    (store.find(job_id) / "request.json").write_bytes(content)
    again = jobs.wait(jobs.resume(job_id).job_id, LONG)
    assert (again.state, again.error["type"]) == ("failed", "Malformed")
    assert f"the request of job {job_id} is damaged" in again.error["message"]


@pytest.mark.parametrize("name", ["events.jsonl", "result.json", "log.txt"])
def test_garbage_in_a_jobs_other_files_is_no_reason_to_fail(name, job):
    job_id = ended(job({"do": "progress"}).job_id).job_id
    (store.find(job_id) / name).write_bytes(b"\xff\x00{garbage\n[]\n3\n")
    assert jobs.status(job_id).state == "succeeded"
    jobs.logs(job_id)


def test_a_job_folder_that_vanishes_takes_nothing_else_with_it(job):
    import shutil

    gone, kept = jobs.wait(job().job_id, LONG), jobs.wait(job().job_id, LONG)
    shutil.rmtree(store.find(gone.job_id))
    assert [j.job_id for j in jobs.list_jobs().jobs] == [kept.job_id]


CLIENT = """
import sys
from mcp_server import jobs
from mcp_server.errors import OutputExists
from mcp_server.schemas.job import MergeRequest
recipe, out = sys.argv[1:]
sys.stdin.read(1)
try:
    started = jobs.start_merge(MergeRequest(recipe=recipe, out=out, engine="mergekit"), worker="tests.fake_worker")
    print("won", started.job_id)
except OutputExists as error:
    print("lost", error.message)
"""


def race(tmp_path, homes):
    """Clients that are all ready before any may start; returns what each said."""
    model = tiny.write_model(tmp_path / "model")
    recipe = tiny.linear_recipe(model, script=[{"do": "wait_for", "path": str(tmp_path / "go")}])
    clients = [
        subprocess.Popen(
            [sys.executable, "-c", CLIENT, recipe, str(tmp_path / "out")],
            env={**os.environ, "MODEL_MERGING_HOME": str(home)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for home in homes
    ]
    for client in clients:
        client.stdin.write("x")
        client.stdin.flush()
    said = [client.communicate()[0].strip() for client in clients]
    (tmp_path / "go").touch()
    return said


@pytest.mark.parametrize("clients", [4, pytest.param(20, marks=pytest.mark.slow)])
def test_of_many_clients_that_race_for_one_output_exactly_one_wins(clients, store, tmp_path):
    said = race(tmp_path, [store] * clients)
    won = [line for line in said if line.startswith("won")]
    assert len(won) == 1
    assert sum(line.startswith("lost") for line in said) == clients - 1
    assert jobs.wait(won[0].split()[1], LONG).state == "succeeded"
    assert jobs.list_jobs().total == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["go", "home", "model", "out"]


def test_two_stores_cannot_write_one_output(store, tmp_path, monkeypatch):
    homes = [store, tmp_path / "other"]
    said = race(tmp_path, homes)
    assert sorted(line.split()[0] for line in said) == ["lost", "won"]
    winner = next(n for n, line in enumerate(said) if line.startswith("won"))
    monkeypatch.setenv("MODEL_MERGING_HOME", str(homes[winner]))
    assert jobs.wait(said[winner].split()[1], LONG).state == "succeeded"


def test_two_servers_on_one_store_see_and_steer_the_same_jobs(job, store, tmp_path):
    started = job({"do": "block"})
    until(started.job_id, reports_progress)
    servers = [Wire(store, tmp_path), Wire(store, tmp_path)]
    for server in servers:
        server.send(*HANDSHAKE)
        server.call(1, "list_merges")
    for server in servers:
        listed = server.result_of(1)["jobs"]
        assert [(j["job_id"], j["state"]) for j in listed] == [(started.job_id, "running")]
    servers[0].call(2, "cancel_merge", job_id=started.job_id)
    assert servers[0].result_of(2)["state"] == "cancelled"
    servers[1].call(2, "merge_status", job_id=started.job_id)
    assert servers[1].result_of(2)["state"] == "cancelled"
    assert [server.leave() for server in servers] == [0, 0]


@pytest.mark.parametrize("jump_seconds", [-10 * 365 * 86400, 10 * 365 * 86400], ids=["back", "forward"])
def test_a_clock_that_jumps_changes_no_outcome(jump_seconds, job, tmp_path, monkeypatch):
    """Waits and silence are measured by the monotonic clock; the wall clock only labels."""
    monkeypatch.setenv("MODEL_MERGING_HANG_TIMEOUT_S", "60")
    started = job({"do": "wait_for", "path": str(tmp_path / "go")})
    until(started.job_id, reports_progress)
    folder = store.find(started.job_id)
    for path in folder.iterdir():
        stat = path.stat()
        os.utime(path, (stat.st_atime + jump_seconds, stat.st_mtime + jump_seconds))
    assert jobs.status(started.job_id).state == "running"
    (tmp_path / "go").touch()
    assert jobs.wait(started.job_id, LONG).state == "succeeded"
    assert jobs.prune(older_than_seconds=0) == 1


def test_a_second_job_for_a_queued_output_is_refused(merge):
    merge({"do": "block"}, out="busy")
    merge(out="wanted")
    with pytest.raises(OutputExists, match="is writing"):
        merge(out="wanted")
