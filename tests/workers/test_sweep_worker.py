"""A whole sweep over real merges of a tiny language model: chosen on dev, reported on test, continued after an interruption."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from mcp_server.schemas.evidence import Sweep
from mcp_server.steps.scenario import read_plan
from tests.workers.test_evaluate_worker import ROOT, place, run

pytestmark = pytest.mark.slow
__all__ = ["place"]


def plan(place: Path) -> dict[str, Any]:
    return {
        "verdict": "merge",
        "strategy": {"id": "task_arithmetic", "parameters": {"lambda": 1.0}},
        "weights": {"other": 1.0, "tuned": 1.0},
        "dtype": "float32",
        "scenario": {
            "base_model": str(place / "base"),
            "sources": [
                {"name": "other", "ref": str(place / "other"), "kind": "full"},
                {"name": "tuned", "ref": str(place / "adapter"), "kind": "lora"},
            ],
        },
    }


def parameters_of(place: Path, out: Path) -> dict[str, Any]:
    file = place / "sweep-plan.yaml"
    file.write_text(json.dumps(plan(place)), encoding="utf-8")
    return {
        "plan": str(file), "out": str(out), "suites": ["echo", "perplexity"], "suite_folders": [str(place / "suites")],
        "grid": ["strategy=task_arithmetic,linear"], "limit": 6, "quick_limit": 3,
        "dtype": "float32", "workers": 2,
    }  # fmt: skip


@pytest.fixture(scope="module")
def calm(place: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """A sweep that nobody disturbs: its result and its folder."""
    folder = tmp_path_factory.mktemp("calm")
    status, result = run("sweep", folder / "job", folder / "home", **parameters_of(place, folder / "sweep"))
    assert status == 0
    return result, folder


def test_a_sweep_measures_chooses_and_writes_the_winner(place: Path, calm: tuple[dict[str, Any], Path]) -> None:
    result, folder = calm
    out = folder / "sweep"
    found = Sweep.model_validate(result)
    assert [c.settings["strategy"] for c in found.candidates] == ["task_arithmetic", "linear"]
    assert json.loads((out / "sweep.json").read_text(encoding="utf-8")) == result
    assert (out / "sweep.md").is_file()
    assert read_plan(out / "plan.yaml").strategy == read_plan(plan(place)).strategy
    measured = [c for c in found.candidates if c.stopped is None]
    for candidate in measured:
        assert candidate.prompts == {"echoing": 6, "general language": 6}
    assert found.winner in {c.name for c in measured}
    assert found.test is not None
    assert found.test.split == "test"
    assert (out / "merged" / "model.safetensors").is_file()
    assert not list((out / "work").glob("*/model/model.safetensors"))
    status, again = run("sweep", folder / "again", folder / "home", **parameters_of(place, out))
    assert status == 0
    assert {c["name"]: c["attempts"] for c in again["candidates"]} == {c.name: 2 for c in found.candidates}
    assert [c["scores"] for c in again["candidates"]] == [c.scores for c in found.candidates]


def test_a_sweep_that_is_killed_goes_on_where_it_was(place: Path, tmp_path: Path, calm: tuple[dict[str, Any], Path]) -> None:
    """kill -9 of the whole process group once the first candidate has been looked at; the same request then ends the same."""
    whole, undisturbed = calm
    killed = tmp_path / "killed"
    folder, home = tmp_path / "two", tmp_path / "other-home"
    folder.mkdir()
    request = {"kind": "sweep", "parameters": parameters_of(place, killed) | {"workers": 1}}
    (folder / "request.json").write_text(json.dumps(request), encoding="utf-8")
    kill_once(folder, home, lambda: any(killed.glob("work/*/quick/task.json")))
    assert not (killed / "sweep.json").exists()
    first = {file.parent.parent.name: file.stat().st_mtime_ns for file in killed.glob("work/*/quick/task.json")}
    status, again = run("sweep", tmp_path / "three", home, **parameters_of(place, killed))
    assert status == 0
    assert {
        file.parent.parent.name: file.stat().st_mtime_ns for file in killed.glob("work/*/quick/task.json")
    }.items() >= first.items()
    assert (again["winner"], [c["scores"] for c in again["candidates"]]) == (
        whole["winner"],
        [c["scores"] for c in whole["candidates"]],
    )
    assert (killed / "merged" / "model.safetensors").read_bytes() == (
        undisturbed / "sweep" / "merged" / "model.safetensors"
    ).read_bytes()


def kill_once(folder: Path, home: Path, reached: Callable[[], bool]) -> None:
    """Run the job in `folder`, and kill -9 its whole process group as soon as that point is reached."""
    process = subprocess.Popen(
        [sys.executable, "-m", "mcp_server.workers.sweep", str(folder)],
        env={**os.environ, "MODEL_MERGING_HOME": str(home), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    while not reached():
        assert process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def test_a_search_uses_its_minutes_and_goes_on_where_it_was_killed(place: Path, tmp_path: Path) -> None:
    """kill -9 once the plan is measured to the end: the same request keeps what was tried, and spends only what is left."""
    out, home, folder = tmp_path / "searched", tmp_path / "home", tmp_path / "one"
    wanted = parameters_of(place, out) | {"minutes": 1.5, "workers": 1, "grid": [], "quick_limit": 4}
    folder.mkdir()
    (folder / "request.json").write_text(json.dumps({"kind": "sweep", "parameters": wanted}), encoding="utf-8")
    kill_once(folder, home, lambda: any(out.glob("work/*/whole/task.json")))
    journal = out / "work" / "search.jsonl"
    tried = [line["settings"] for line in map(json.loads, journal.read_text(encoding="utf-8").splitlines()) if "settings" in line]
    measured = {file: file.stat().st_mtime_ns for file in out.glob("work/*/*/task.json")}
    status, result = run("sweep", tmp_path / "two", home, **wanted)
    assert status == 0
    found = Sweep.model_validate(result)
    assert [candidate.settings for candidate in found.candidates][: len(tried)] == tried
    assert {file: file.stat().st_mtime_ns for file in measured} == measured
    assert (found.minutes, found.limit) == (1.5, 6)
    assert found.winner in {candidate.name for candidate in found.candidates if candidate.stopped is None}
    assert "within" in found.why
    assert found.test is not None
    assert found.test.limit == 6
    events = [json.loads(line) for line in (tmp_path / "two" / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    told = [event for event in events if event.get("leaders")]
    assert told
    assert all(0 <= event["left_seconds"] <= 90 for event in told)


def test_a_sweep_on_a_cluster_that_loses_a_node_ends_as_undisturbed(
    place: Path, tmp_path: Path, calm: tuple[dict[str, Any], Path]
) -> None:
    """Two nodes, candidates merged in memory on both; one is lost with a candidate, and nothing of the outcome differs."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    whole, undisturbed = calm
    room = {"num_cpus": 1, "object_store_memory": 80 * 1024 * 1024}
    cluster = Cluster(initialize_head=True, head_node_args=room)
    doomed = cluster.add_node(**room)
    out, folder = tmp_path / "sweep", tmp_path / "job"
    on_cluster = parameters_of(place, out) | {"ray": cluster.address, "memory_gib": 0.1}
    try:
        with ThreadPoolExecutor(1) as pool:
            ending = pool.submit(run, "sweep", folder, tmp_path / "home", **on_cluster)
            while len(list(out.glob("work/*/quick/step0/events.jsonl"))) < 2:
                assert not ending.done(), ending.result()
                time.sleep(0.05)
            cluster.remove_node(doomed, allow_graceful=False)
            status, result = ending.result()
    finally:
        cluster.shutdown()
    assert (status, result["executor"]) == (0, "ray")
    attempts = [int(file.read_text(encoding="utf-8")) for file in out.glob("work/*/quick/attempts")]
    assert sorted(attempts) == [1, 2], "the node had no candidate when it was lost"
    assert (result["winner"], [c["scores"] for c in result["candidates"]]) == (
        whole["winner"],
        [c["scores"] for c in whole["candidates"]],
    )
    assert (out / "merged" / "model.safetensors").read_bytes() == (
        undisturbed / "sweep" / "merged" / "model.safetensors"
    ).read_bytes()
    assert not list(out.glob("work/*/model/model.safetensors")), "candidates on disk"
