"""Sources that change, shrink or vanish while they are read."""

import os
import shutil

import pytest

from mcp_server import jobs
from mcp_server.schemas.job import MergeRequest
from tests.faults import big
from tests.jobs.watching import LONG, until

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    folder = tmp_path_factory.mktemp("originals")
    yield [big.write_model(folder / f"m{n}", n) for n in range(3)]
    shutil.rmtree(folder)


@pytest.fixture
def models(originals, store, tmp_path):
    """Copies that a test may spoil."""
    yield [shutil.copytree(model, tmp_path / "sources" / model.name) for model in originals]
    shutil.rmtree(tmp_path / "sources")


def merging(status) -> bool:
    return status.progress is not None and status.progress.stage == "merge"


def start(models, tmp_path):
    started = jobs.start_merge(
        MergeRequest(recipe=big.ties_recipe(*models), out=str(tmp_path / "out"), engine="stream", seed=1, threads=1)
    )
    until(started.job_id, merging)
    return started.job_id


def test_a_source_that_is_truncated_during_the_merge_is_named(models, tmp_path):
    job_id = start(models, tmp_path)
    os.truncate(models[2] / "model.safetensors", 1_000_000)
    ended = jobs.wait(job_id, LONG)
    assert (ended.state, ended.error["type"]) == ("failed", "InputChanged")
    assert str(models[2]) in ended.error["message"]
    assert not (tmp_path / "out").exists()


def test_a_source_that_is_changed_in_place_during_the_merge_is_named_and_the_mixture_is_not_published(models, tmp_path):
    job_id = start(models, tmp_path)
    file = models[2] / "model.safetensors"
    with file.open("r+b") as stream:
        stream.seek(-2, os.SEEK_END)
        stream.write(b"\x00\x00")
    ended = jobs.wait(job_id, LONG)
    assert (ended.state, ended.error["type"]) == ("failed", "InputChanged")
    assert ended.error["message"].startswith(f"{file} was changed while it was read")
    assert not (tmp_path / "out").exists()


def test_a_source_that_is_removed_during_the_merge_is_named_and_putting_it_back_lets_the_merge_end(models, tmp_path):
    job_id = start(models, tmp_path)
    file = models[2] / "model.safetensors"
    file.rename(tmp_path / "moved")
    ended = jobs.wait(job_id, LONG)
    assert (ended.state, ended.error["message"]) == ("failed", f"{file} was removed while it was read")
    (tmp_path / "moved").rename(file)
    assert jobs.wait(jobs.resume(job_id).job_id, LONG).state == "succeeded"


def test_a_disk_that_fails_under_a_source_is_told_with_the_file(models, failing_disk, tmp_path):
    """A real EIO: the source lies on a mounted file that is cut off while the merge reads it."""
    disk = failing_disk(260 << 20)
    shutil.copytree(models[2], disk.folder / "m2")
    disk.forget()
    job_id = start([*models[:2], disk.folder / "m2"], tmp_path)
    disk.lose_all_but(8 << 20)
    ended = jobs.wait(job_id, LONG)
    assert (ended.state, ended.error["type"]) == ("failed", "RunFailed")
    assert ended.error["message"] == f"the disk reported an input/output error at {disk.folder / 'm2' / 'model.safetensors'}"
    assert "check the disk" in ended.error["next_step"]
    assert not (tmp_path / "out").exists()


def test_a_source_that_changed_between_interruption_and_resume_is_not_mixed_with_the_old(models, tmp_path):
    job_id = start(models, tmp_path)
    assert jobs.interrupt(job_id).state == "interrupted"
    file = models[1] / "model.safetensors"
    with file.open("r+b") as stream:
        stream.seek(-2, os.SEEK_END)
        stream.write(b"\x00\x00")
    ended = jobs.wait(jobs.resume(job_id).job_id, 120)
    assert (ended.state, ended.error["type"]) == ("failed", "InputChanged")
    assert str(file) in ended.error["message"]


def test_a_source_that_is_deleted_before_the_resume_is_named(models, tmp_path):
    job_id = start(models, tmp_path)
    jobs.interrupt(job_id)
    (models[2] / "model.safetensors").unlink()
    ended = jobs.wait(jobs.resume(job_id).job_id, LONG)
    assert ended.state == "failed"
    assert str(models[2]) in ended.error["message"]
