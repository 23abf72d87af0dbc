"""Disks that are full, read-only, or lose folders while a merge runs."""

import shutil
import subprocess
from pathlib import Path

import pytest

from mcp_server import jobs
from mcp_server.errors import DiskFull, DoesNotFit, NotAllowed
from mcp_server.formats.safetensors import read_header
from mcp_server.jobs import store as stored
from mcp_server.schemas.job import MergeRequest
from tests import tiny
from tests.fake_worker import FAKE, scripted
from tests.jobs.watching import LONG, reports_progress, until

MIB = 1 << 20


def fill(folder: Path) -> Path:
    """Use up every block; returns the file to delete to make room again."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file:
        step = MIB
        while step:
            try:
                file.write(b"\x00" * step)
            except OSError:
                step //= 2
    return ballast


def test_a_merge_that_does_not_fit_the_disk_is_not_started(merge, disk, tmp_path):
    small = disk(MIB)
    with pytest.raises(DoesNotFit, match="free disk"):
        merge(out=str(small / "out"))
    assert (list(small.iterdir()), jobs.list_jobs().total) == ([], 0)


def test_a_disk_that_fills_up_during_the_merge_ends_it_in_our_words_and_it_can_go_on(merge, disk, tmp_path):
    roomy = disk(60 * MIB)
    write = {"do": "write", "name": "big.safetensors", "bytes": MIB}
    started = merge({"do": "wait_for", "path": str(tmp_path / "go")}, write, out=str(roomy / "out"))
    until(started.job_id, reports_progress)
    ballast = fill(roomy)
    (tmp_path / "go").touch()
    ended = jobs.wait(started.job_id, LONG)
    assert (ended.state, ended.error["type"], ended.exit_code) == ("failed", "DiskFull", 4)
    assert (roomy / "out").exists() is False
    ballast.unlink()
    assert jobs.wait(jobs.resume(started.job_id).job_id, LONG).state == "succeeded"
    assert sorted(p.name for p in roomy.iterdir()) == ["out"]


def test_the_streaming_engine_on_a_disk_that_filled_up_while_it_waited_says_so_and_can_go_on(merge, disk, tmp_path):
    """It fitted when it was asked for; another merge ran first, and the disk was full when its turn came."""
    merge({"do": "wait_for", "path": str(tmp_path / "go")}, out="first")
    roomy = disk(60 * MIB)
    recipe = tiny.linear_recipe(tmp_path / "model", tiny.write_model(tmp_path / "other", 1))
    waiting = jobs.start_merge(MergeRequest(recipe=recipe, out=str(roomy / "out"), engine="stream", seed=1))
    assert waiting.state == "queued"
    ballast = fill(roomy)
    (tmp_path / "go").touch()
    ended = jobs.wait(waiting.job_id, LONG)
    assert (ended.state, ended.error["type"], ended.exit_code) == ("failed", "DiskFull", 4)
    assert not (roomy / "out").exists()
    ballast.unlink()
    assert jobs.wait(jobs.resume(waiting.job_id).job_id, LONG).state == "succeeded"
    assert sorted(p.name for p in roomy.iterdir()) == ["out"]
    assert read_header(roomy / "out" / "model.safetensors").tensors


def test_starting_with_the_store_on_a_full_disk_says_so_and_leaves_nothing(disk, monkeypatch):
    small = disk(MIB)
    monkeypatch.setenv("MODEL_MERGING_HOME", str(small / "home"))
    stored.paths.jobs_dir().mkdir(parents=True)
    fill(small)
    with pytest.raises(DiskFull, match="job store"):
        jobs.start(scripted("verify"), worker=FAKE)
    assert [p.name for p in stored.paths.jobs_dir().iterdir() if p.name.startswith("verify")] == []


def test_a_store_whose_disk_fills_up_still_learns_how_its_job_ended(disk, monkeypatch, tmp_path):
    """Every job keeps a spare block that it gives up for its final records."""
    small = disk(MIB)
    monkeypatch.setenv("MODEL_MERGING_HOME", str(small / "home"))
    script = [{"do": "wait_for", "path": str(tmp_path / "go")}, {"do": "fail", "message": "told to"}]
    started = jobs.start(scripted("verify", script=script), worker=FAKE)
    until(started.job_id, reports_progress)
    fill(small)
    (tmp_path / "go").touch()
    ended = jobs.wait(started.job_id, LONG)
    assert ended.state == "failed"
    assert "told to" in ended.error["message"]


def test_a_read_only_target_is_refused_before_anything_starts(merge, disk):
    target = disk(60 * MIB)
    subprocess.run(["mount", "-o", "remount,ro", str(target)], check=True)
    with pytest.raises(NotAllowed, match="read-only file system"):
        merge(out=str(target / "out"))
    assert jobs.list_jobs().total == 0


def test_a_partial_output_that_is_removed_during_the_merge_is_noticed(merge, tmp_path):
    write = {"do": "write", "name": "a.safetensors", "bytes": 10}
    started = merge(write, {"do": "wait_for", "path": str(tmp_path / "go")}, {"do": "no_output"})
    until(started.job_id, reports_progress)
    shutil.rmtree(tmp_path / f"out.partial-{started.job_id}")
    (tmp_path / "go").touch()
    ended = jobs.wait(started.job_id, LONG)
    assert (ended.state, ended.error["type"]) == ("failed", "RunFailed")
    assert "left no *.safetensors" in ended.error["message"]
    assert not (tmp_path / "out").exists()


def test_an_output_that_somebody_makes_during_the_merge_is_not_touched_and_the_merge_is_kept(merge, tmp_path):
    started = merge({"do": "wait_for", "path": str(tmp_path / "go")})
    until(started.job_id, reports_progress)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    (tmp_path / "go").touch()
    ended = jobs.wait(started.job_id, LONG)
    assert (ended.state, ended.error["type"]) == ("failed", "OutputExists")
    (tmp_path / "out").rename(tmp_path / "mine")
    assert jobs.wait(jobs.resume(started.job_id).job_id, LONG).state == "succeeded"
    assert (tmp_path / "out" / "model.safetensors").is_file()
