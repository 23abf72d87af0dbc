"""Which merges run at once: the operator's number, the memory budget, and the order of asking."""

from pathlib import Path

import pytest

from mcp_server import jobs
from mcp_server.jobs import process, queue, store
from mcp_server.jobs.store import Record
from mcp_server.system.settings import Settings
from tests.jobs.watching import LONG, reports_progress, until

GIB = 1 << 30


def record(number: int, kind: str = "merge", need: int | None = None) -> Record:
    return Record(job_id=f"{kind}-{number}", kind=kind, state="running", created="", estimate_bytes=need)


@pytest.mark.parametrize(
    ("running", "asking", "settings", "allowed"),
    [
        ([], record(1, need=99 * GIB), {"ram_gib": 1}, True),
        ([record(1, need=1)], record(2, need=1), {}, False),
        ([record(1, need=GIB)], record(2, need=GIB), {"max_running": 2, "ram_gib": 2}, True),
        ([record(1, need=GIB)], record(2, need=GIB + 1), {"max_running": 2, "ram_gib": 2}, False),
        ([record(1, need=GIB)], record(2, need=None), {"max_running": 2, "ram_gib": 2}, False),
        ([record(1, need=None)], record(2, need=1), {"max_running": 2, "ram_gib": 2}, False),
        ([record(1, "evaluate"), record(2, "verify")], record(3, need=GIB), {"ram_gib": 2}, True),
        ([record(1, "sweep", need=1)], record(2, need=1), {}, False),
    ],
    ids=[
        "one alone may always try",
        "one at a time by default",
        "two that fit together",
        "two that do not fit together",
        "an unknown need counts as everything",
        "beside an unknown need nothing fits",
        "evaluations do not take a merge's place",
        "a sweep takes a merge's place",
    ],
)
def test_admission(running, asking, settings, allowed):
    assert queue.admits(running, asking, Settings(**settings)) is allowed


def test_merges_wait_for_each_other_and_start_in_order(merge, tmp_path):
    gates = [tmp_path / f"go{n}" for n in range(3)]
    ids = [merge({"do": "wait_for", "path": str(gate)}, out=f"out{n}").job_id for n, gate in enumerate(gates)]
    until(ids[0], reports_progress)
    assert [jobs.status(i).state for i in ids] == ["running", "queued", "queued"]
    gates[0].touch()
    until(ids[1], reports_progress)
    assert [jobs.status(i).state for i in ids] == ["succeeded", "running", "queued"]
    gates[1].touch()
    gates[2].touch()
    assert jobs.wait(ids[2], LONG).state == "succeeded"


def test_two_merges_run_at_once_when_the_operator_allows_it(merge, tmp_path, monkeypatch):
    monkeypatch.setenv("MODEL_MERGING_MAX_RUNNING", "2")
    ids = [merge({"do": "block"}, out=f"out{n}").job_id for n in range(3)]
    for each in ids[:2]:
        until(each, reports_progress)
    assert [jobs.status(i).state for i in ids] == ["running", "running", "queued"]


def test_two_merges_that_do_not_fit_together_wait_for_each_other(merge, tmp_path, monkeypatch):
    first = merge({"do": "wait_for", "path": str(tmp_path / "go")})
    need = store.read(store.find(first.job_id)).estimate_bytes
    monkeypatch.setenv("MODEL_MERGING_MAX_RUNNING", "2")
    monkeypatch.setenv("MODEL_MERGING_RAM_GIB", str(need * 1.5 / GIB))
    second = merge(out="other")
    until(first.job_id, reports_progress)
    assert jobs.status(second.job_id).state == "queued"
    (tmp_path / "go").touch()
    assert jobs.wait(second.job_id, LONG).state == "succeeded"
    began = [stored_of(j).started for j in (first, second)]
    assert stored_of(first).finished <= began[1]


def stored_of(job):
    return store.read(store.find(job.job_id))


def test_other_kinds_do_not_wait_for_a_merge(merge, job):
    until(merge({"do": "block"}).job_id, reports_progress)
    assert jobs.wait(job().job_id, LONG).state == "succeeded"


def test_a_queued_job_costs_no_process(merge, tmp_path):
    merge({"do": "block"})
    waiting = merge(out="other")
    record = store.read(store.find(waiting.job_id))
    assert (waiting.state, record.runner, record.worker) == ("queued", None, None)
    assert not (Path(waiting.log_path)).exists()


def test_a_queued_job_that_is_cancelled_never_runs(merge, tmp_path):
    first = merge({"do": "wait_for", "path": str(tmp_path / "go")})
    second = merge(out="other")
    assert jobs.cancel(second.job_id).state == "cancelled"
    (tmp_path / "go").touch()
    assert jobs.wait(first.job_id, LONG).state == "succeeded"
    assert (jobs.status(second.job_id).state, (tmp_path / "other").exists()) == ("cancelled", False)
    assert [p.name for p in tmp_path.glob(".*.merge-lock")] == []


@pytest.mark.parametrize(("how", "state"), [(jobs.cancel, "cancelled"), (jobs.interrupt, "interrupted")])
def test_a_queued_job_that_is_started_while_it_is_being_stopped_is_stopped(how, state, merge, monkeypatch):
    """Our look says that it waits; when we want to take it, the dispatcher has just given it to a runner."""
    first = merge({"do": "block"})
    second = merge({"do": "block"}, out="other")
    stale, read = store.read(store.find(second.job_id)), store.read
    assert stale.state == "queued"
    jobs.cancel(first.job_id)
    until(second.job_id, reports_progress)
    seen = []

    def late(folder, **more):
        seen.append(folder.name)
        return stale if seen == [second.job_id] else read(folder, **more)

    monkeypatch.setattr(store, "read", late)
    assert how(second.job_id).state == state


def test_the_queue_moves_on_when_a_runner_was_killed(merge):
    first = merge({"do": "block"})
    second = merge(out="other")
    until(first.job_id, reports_progress)
    runner = store.read(store.find(first.job_id)).runner
    assert process.end_group(runner, 0.0)
    assert jobs.status(first.job_id).state == "interrupted"
    assert jobs.wait(second.job_id, LONG).state == "succeeded"
