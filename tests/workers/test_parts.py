"""A merge split by output file: the bytes of the whole one, also when a process or a node dies on the way."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mcp_server.engine.merge import merge, merge_part
from mcp_server.engine.request import Request
from mcp_server.errors import BadInput, DoesNotFit, InputChanged
from mcp_server.formats.provenance import read_provenance
from mcp_server.jobs.engines import choose
from mcp_server.schemas.job import MergeRequest
from tests.engine.synthetic import write_two_sources

ROOT = Path(__file__).parents[2]
SHARD = 2000


def quiet(*_: object) -> None: ...


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    return write_two_sources(tmp_path, "dare_ties")


def write_job(folder: Path, recipe: str, out: Path, **more: Any) -> Path:
    parameters = {"recipe": recipe, "out": str(out), "partial": str(out), "seed": 3, "shard_size": SHARD, **more}
    folder.mkdir(exist_ok=True)
    (folder / "request.json").write_text(json.dumps({"kind": "merge", "parameters": parameters}), encoding="utf-8")
    return folder


def begin(job: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "mcp_server.workers.stream", str(job)], stderr=subprocess.DEVNULL, cwd=ROOT
    )


def result_of(job: Path) -> dict[str, Any]:
    assert begin(job).wait() == 0, (job / "error.json").read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads((job / "result.json").read_text(encoding="utf-8"))
    return found


def content(folder: Path) -> dict[str, bytes]:
    """Everything but what says when it was made."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name not in ("merge_provenance.json", "README.md")}


def whole(recipe: str, tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    out = tmp_path / "whole"
    request = Request(recipe, out, tmp_path / "whole.journal", seed=3, threads=2, shard_bytes=SHARD)
    return out, merge(request, quiet)


def test_two_processes_write_what_one_does(recipe: str, tmp_path: Path) -> None:
    expected, alone = whole(recipe, tmp_path)
    found = result_of(write_job(tmp_path / "job", recipe, tmp_path / "out", workers=2))
    assert content(tmp_path / "out") == content(expected)
    assert len(list(expected.glob("*.safetensors"))) > 2
    same = ("tensors", "bytes", "digests", "warnings", "seed", "resumed")
    assert {key: found[key] for key in same} == {key: alone[key] for key in same}
    assert list(found["landed"].values()) == list(alone["landed"].values())
    records = [read_provenance(folder) for folder in (tmp_path / "out", expected)]
    assert records[0] is not None and records[1] is not None
    assert records[0].digests == records[1].digests


@pytest.mark.slow
def test_killed_on_the_way_it_goes_on_with_the_files_that_are_missing(recipe: str, tmp_path: Path) -> None:
    expected, _ = whole(recipe, tmp_path)
    out = tmp_path / "out"
    job = write_job(tmp_path / "job", recipe, out, workers=2)
    running = begin(job)
    _until(lambda: any(out.glob(".parts/*/task.json")))
    running.send_signal(signal.SIGKILL)
    running.wait()
    assert not (job / "result.json").exists()
    assert result_of(job)["seed"] == 3
    assert content(out) == content(expected)


def test_a_part_refuses_sources_that_are_not_those_of_the_plan(recipe: str, tmp_path: Path) -> None:
    request = Request(recipe, tmp_path / "out", tmp_path / "journal", seed=3, shard_bytes=SHARD)
    with pytest.raises(InputChanged, match="planned with"):
        merge_part(request, 0, "another", quiet)
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_split_is_said_before_it_starts(recipe: str, tmp_path: Path) -> None:
    given = {"recipe": recipe, "out": str(tmp_path / "out"), "workers": 2}
    for more, reason in (
        ({"engine": "mergekit"}, "the mergekit engine cannot"),
        ({"output": "adapter"}, "an adapter is one small file"),
    ):
        with pytest.raises(BadInput, match=reason):
            choose(MergeRequest.of(given | more))
    with pytest.raises(DoesNotFit, match="use --workers 2"):
        choose(MergeRequest.of(given | {"workers": 9, "ram_gib": 0.2, "threads": 1}))
    assert choose(MergeRequest.of(given)).engine == "stream"


@pytest.mark.slow
def test_a_node_of_a_ray_cluster_dies_and_the_merge_has_the_same_bytes(recipe: str, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    expected, _ = whole(recipe, tmp_path)
    store = 80 * 1024 * 1024
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": store})
    doomed = cluster.add_node(num_cpus=1, object_store_memory=store)
    out = tmp_path / "out"
    job = write_job(tmp_path / "job", recipe, out, ray=cluster.address)
    ended: list[dict[str, Any]] = []
    merging = threading.Thread(target=lambda: ended.append(result_of(job)), daemon=True)
    try:
        merging.start()
        _until(lambda: len(list(out.glob(".parts/*/attempts"))) >= 2)
        cluster.remove_node(doomed, allow_graceful=False)
        cluster.add_node(num_cpus=1, object_store_memory=store)
        merging.join(180)
        assert ended
        assert content(out) == content(expected)
    finally:
        cluster.shutdown()


def _until(true: Callable[[], bool], seconds: float = 90) -> None:
    ends = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < ends
        time.sleep(0.01)
