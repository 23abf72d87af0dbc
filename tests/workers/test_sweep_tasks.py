"""Tasks of a sweep: what they leave behind, how they fail, and that a second run does not repeat what is whole."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mcp_server.errors import BadInput
from mcp_server.workers.protocol import Job
from mcp_server.workers.sweeping.progress import Progress
from mcp_server.workers.tasks.executors import LocalExecutor, RayExecutor
from mcp_server.workers.tasks.task import Step, Task, run_task
from mcp_server.workers.tasks.watching import newest_word
from tests.fake_worker import FAKE

ROOT = Path(__file__).parents[2]


def step(*script: dict[str, Any], output: str | None = None) -> Step:
    return Step(FAKE, {"script": list(script)}, output=output)


def test_a_task_gives_the_result_of_its_last_step(tmp_path: Path) -> None:
    task = Task("t", str(tmp_path / "t"), [step(), step({"do": "say", "text": "hello"})])
    answer = run_task(task.as_dict())
    assert set(answer) == {"result", "attempts"}
    assert answer["attempts"] == 1
    assert (tmp_path / "t" / "step1" / "log.txt").read_text(encoding="utf-8") == "hello\n"


def test_our_own_errors_come_back_as_they_were(tmp_path: Path) -> None:
    task = Task("t", str(tmp_path / "t"), [step({"do": "fail", "type": "DiskFull", "message": "no room"})])
    assert run_task(task.as_dict())["error"]["type"] == "DiskFull"


def test_a_bug_names_the_log(tmp_path: Path) -> None:
    task = Task("t", str(tmp_path / "t"), [step({"do": "bug"})])
    error = run_task(task.as_dict())["error"]
    assert error["message"] == f"{FAKE} ended with status 70"
    assert str(tmp_path / "t" / "step0" / "log.txt") in error["next_step"]


def test_a_finished_task_is_not_run_again_and_a_changed_one_is(tmp_path: Path) -> None:
    first = Task("t", str(tmp_path / "t"), [step({"do": "say", "text": "once"})])
    run_task(first.as_dict())
    assert run_task(first.as_dict())["attempts"] == 2
    log = tmp_path / "t" / "step0" / "log.txt"
    assert log.read_text(encoding="utf-8") == "once\n"
    run_task(Task("t", first.folder, [step({"do": "say", "text": "changed"})]).as_dict())
    assert log.read_text(encoding="utf-8") == "once\nchanged\n"


def test_a_merge_that_was_removed_starts_anew_and_one_that_was_cut_off_goes_on(tmp_path: Path) -> None:
    """The journal of a merge means something only beside the partial output that it is about."""
    model, journal = tmp_path / "model", tmp_path / "model.step" / "journal.jsonl"
    journal.parent.mkdir()
    journal.write_text("{}", encoding="utf-8")
    merge = step({"do": "write", "name": "weights", "bytes": 10}, output=str(model))
    assert "result" in run_task(Task("t", str(tmp_path / "t"), [merge]).as_dict())
    assert (model / "weights").stat().st_size == 10
    assert not journal.exists()
    journal.write_text("{}", encoding="utf-8")
    (tmp_path / "model").rename(tmp_path / "model.partial")
    (tmp_path / "model.partial" / "begun").touch()
    assert "result" in run_task(Task("t", str(tmp_path / "u"), [merge]).as_dict())
    assert (model / "begun").exists()
    assert journal.exists()


def test_a_failed_task_runs_again_and_keeps_its_model_until_it_succeeds(tmp_path: Path) -> None:
    """What was in its way (a full disk, too little memory) may be gone."""
    (tmp_path / "model").mkdir()
    script = {"do": "fail_until", "path": str(tmp_path / "room"), "type": "DiskFull", "message": "no room"}
    task = Task("t", str(tmp_path / "t"), [step(script)], remove=[str(tmp_path / "model")])
    assert run_task(task.as_dict())["error"]["type"] == "DiskFull"
    assert (tmp_path / "model").exists()
    (tmp_path / "room").touch()
    answer = run_task(task.as_dict())
    assert (set(answer), answer["attempts"]) == ({"result", "attempts"}, 2)
    assert not (tmp_path / "model").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")
def test_a_process_of_a_task_dies_with_whoever_runs_the_task(tmp_path: Path) -> None:
    """A lost worker of a cluster leaves nobody behind who writes where the task runs again."""
    task = Task("t", str(tmp_path / "t"), [step({"do": "wait_for", "path": str(tmp_path / "never")})])
    code = f"from mcp_server.workers.tasks.task import run_task; run_task({task.as_dict()!r})"
    runner = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    events = tmp_path / "t" / "step0" / "events.jsonl"
    while not events.is_file():
        assert runner.poll() is None
        time.sleep(0.01)
    (child,) = Path(f"/proc/{runner.pid}/task/{runner.pid}/children").read_text(encoding="ascii").split()
    runner.kill()
    runner.wait()
    ends = time.monotonic() + 10
    while Path(f"/proc/{child}/stat").is_file() and time.monotonic() < ends:
        if Path(f"/proc/{child}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0] == "Z":
            break
        time.sleep(0.01)
    assert time.monotonic() < ends


def test_the_newest_word_of_the_tasks_is_repeated_until_they_end(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    task = Task(
        "ties", str(tmp_path / "t"), [step({"do": "progress", "done": 3, "total": 7}, {"do": "wait_for", "path": str(gate)})]
    )
    (tmp_path / "job").mkdir()
    (tmp_path / "job" / "request.json").write_text('{"kind": "sweep", "parameters": {}}', encoding="utf-8")
    progress = Progress(Job(tmp_path / "job"), every_s=0.01)
    progress.tell("quick look", 1, 4)
    events = tmp_path / "job" / "events.jsonl"

    def open_when_told() -> None:
        while "ties: " not in events.read_text(encoding="utf-8"):
            pass
        gate.touch()

    thread = threading.Thread(target=open_when_told, daemon=True)
    thread.start()
    with progress.following([task]):
        list(LocalExecutor(1).run([task]))
    thread.join()
    said = [json.loads(line) for line in events.read_text(encoding="utf-8").splitlines()]
    assert {(line["stage"], line["done"], line["total"], line["unit"]) for line in said} == {("quick look", 1, 4, "candidates")}
    assert {"ties: work 3/7", "ties: waiting"} & {line["message"] for line in said}


def test_a_half_written_line_says_nothing(tmp_path: Path) -> None:
    task = Task("ties", str(tmp_path), [step()])
    (tmp_path / "step0").mkdir()
    assert newest_word([task]) == ""
    (tmp_path / "step0" / "events.jsonl").write_text(
        '{"stage": "merge", "done": 2, "total": 9, "unit": "tensors"}\n{"sta', encoding="utf-8"
    )
    assert newest_word([task]) == "ties: merge 2/9 tensors"


def test_folders_that_a_task_no_longer_needs_are_removed(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    run_task(Task("t", str(tmp_path / "t"), [step()], remove=[str(tmp_path / "model")]).as_dict())
    assert not (tmp_path / "model").exists()


def test_the_local_executor_answers_every_task(tmp_path: Path) -> None:
    tasks = [Task(f"t{i}", str(tmp_path / f"t{i}"), [step({"do": "say", "text": str(i)})]) for i in range(3)]
    answers = {task.name: answer for task, answer in LocalExecutor(2).run(tasks)}
    assert {name: "result" in answer for name, answer in answers.items()} == {"t0": True, "t1": True, "t2": True}


def test_a_task_survives_the_journey_as_json(tmp_path: Path) -> None:
    task = Task("t", str(tmp_path / "t"), [step()], cpus=2, memory_bytes=5)
    assert "result" in run_task(json.loads(json.dumps(task.as_dict())))


@pytest.mark.slow
def test_a_node_of_a_ray_cluster_dies_and_its_task_runs_again_elsewhere(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 80 * 1024 * 1024})
    doomed = cluster.add_node(num_cpus=1, object_store_memory=80 * 1024 * 1024)
    executor = RayExecutor(cluster.address)
    try:
        assert executor.workers == 2
        gate = tmp_path / "gate"
        wait = {"do": "wait_for", "path": str(gate)}
        tasks = [Task(name, str(tmp_path / name), [step(wait)], cpus=1, memory_bytes=10_000_000) for name in ("a", "b")]
        answers: dict[str, dict[str, Any]] = {}
        asking = threading.Thread(target=lambda: answers.update({t.name: a for t, a in executor.run(tasks)}), daemon=True)
        asking.start()
        _until(lambda: all((Path(task.folder) / "step0" / "events.jsonl").is_file() for task in tasks))
        cluster.remove_node(doomed, allow_graceful=False)
        cluster.add_node(num_cpus=1, object_store_memory=80 * 1024 * 1024)
        _until(lambda: max(map(_attempts, tasks)) == 2)
        gate.touch()
        asking.join(60)
        assert {name: "result" in answer for name, answer in answers.items()} == {"a": True, "b": True}
        assert sorted(answer["attempts"] for answer in answers.values()) == [1, 2]
    finally:
        executor.close()
        cluster.shutdown()


def _attempts(task: Task) -> int:
    file = Path(task.folder) / "attempts"
    return int(file.read_text(encoding="utf-8") or 0) if file.is_file() else 0


def _until(true: Callable[[], bool], seconds: float = 90) -> None:
    ends = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < ends
        time.sleep(0.05)


def test_without_ray_the_message_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(BadInput, match="needs the package ray"):
        RayExecutor("auto")
