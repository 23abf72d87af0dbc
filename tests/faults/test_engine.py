"""A mergekit that crashes, hangs, prints garbage, or says that all is well when it is not: a fake command in its place."""

import stat
from pathlib import Path

import pytest

from mcp_server import jobs
from mcp_server.errors import NotAModel
from mcp_server.schemas.job import MergeRequest, Progress
from tests import tiny
from tests.jobs.watching import LONG, until

WRITE = 'mkdir -p "$2"; echo "{}" > "$2/config.json"; cp "$WEIGHTS" "$2/model.safetensors"'


@pytest.fixture
def run(store, tmp_path, monkeypatch):
    """run(shell_lines) merges with a `mergekit-yaml` that is this script; returns the job's id."""
    model = tiny.write_model(tmp_path / "model")
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("MODEL_MERGING_MERGEKIT_BIN", str(folder))

    def start(script: str) -> str:
        command = folder / "mergekit-yaml"
        command.write_text(f"#!/bin/sh\nWEIGHTS={model / 'model.safetensors'}\n{script}\n", encoding="utf-8")
        command.chmod(command.stat().st_mode | stat.S_IXUSR)
        request = MergeRequest(recipe=tiny.linear_recipe(model), out=str(tmp_path / "out"), engine="mergekit")
        return jobs.start_merge(request).job_id

    return start


def failure(job_id: str) -> tuple[str, str]:
    found = jobs.wait(job_id, LONG)
    assert found.state == "failed"
    assert not Path(found.output).exists()
    return found.error["type"], found.error["message"]


def test_a_run_that_works_writes_the_metadata_of_a_merge(run, tmp_path):
    assert jobs.wait(run(WRITE), LONG).state == "succeeded"
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "README.md",
        "config.json",
        "merge_provenance.json",
        "mergekit_config.yml",
        "model.safetensors",
    ]


def test_a_crash_is_told_with_its_signal(run):
    assert failure(run("kill -SEGV $$")) == ("RunFailed", "mergekit crashed with signal 11")


def test_a_kill_from_outside_is_not_called_a_lack_of_memory(run):
    assert failure(run("kill -KILL $$")) == ("RunFailed", "mergekit was ended from outside (SIGKILL)")


def test_an_exit_status_is_told_with_the_last_words(run):
    kind, message = failure(run("echo 'something odd happened' >&2; exit 9"))
    assert (kind, message) == ("RunFailed", "mergekit ended with status 9: something odd happened")


def test_success_without_output_is_a_failure(run):
    assert failure(run("exit 0")) == ("RunFailed", "mergekit reported success but wrote no weights")


def test_success_with_half_an_output_is_a_failure(run):
    kind, message = failure(run(f'{WRITE}; head -c 100 "$WEIGHTS" > "$2/model.safetensors"'))
    assert kind == "Malformed"
    assert "not a sound safetensors file" in message


@pytest.mark.parametrize(("change", "how"), [('echo >> "$WEIGHTS"', "changed"), ('rm "$WEIGHTS"', "removed")])
def test_a_source_that_changes_while_mergekit_reads_it_is_named(change, how, run, tmp_path):
    kind, message = failure(run(f"{WRITE}; {change}"))
    assert (kind, message) == ("InputChanged", f"{tmp_path / 'model' / 'model.safetensors'} was {how} while it was read")


def test_failing_after_the_weights_leaves_no_output(run):
    kind, message = failure(run(f"{WRITE}; echo 'OSError: no tokenizer'; exit 1"))
    assert (kind, message) == ("RunFailed", "mergekit ended with status 1: OSError: no tokenizer")


def test_garbage_on_its_output_is_survived(run):
    job_id = run(f"head -c 300000 /dev/urandom; {WRITE}")
    assert jobs.wait(job_id, LONG).state == "succeeded"


def test_a_hang_is_ended_after_the_operators_time(run, monkeypatch):
    monkeypatch.setenv("MODEL_MERGING_HANG_TIMEOUT_S", "2")
    kind, message = failure(run("echo started; sleep 600"))
    assert kind == "RunFailed"
    assert "said nothing for 2 s and was ended" in message


def test_progress_bars_become_progress(run, tmp_path):
    bar = r"printf 'Executing graph:  25%%|###       | 50/200 [00:01<00:03, 50.0it/s]'"
    job_id = run(f"{bar}; while [ ! -e {tmp_path}/go ]; do sleep 0.01; done; {WRITE}")
    found = until(job_id, lambda s: s.progress is not None)
    assert found.progress == Progress(stage="merge", done=50, total=200, unit="steps")
    (tmp_path / "go").touch()
    assert jobs.wait(job_id, LONG).state == "succeeded"


@pytest.mark.parametrize(
    ("said", "kind", "message"),
    [
        ("OSError: [Errno 28] No space left on device", "DiskFull", "the disk is full"),
        (
            "RuntimeError: Tensor model.layers.28.mlp.up_proj.weight required but not present in model /m",
            "Incompatible",
            "/m has no tensor model.layers.28.mlp.up_proj.weight, which the recipe needs",
        ),
        (
            "RuntimeError: [enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory",
            "OutOfMemory",
            "mergekit could not get the memory that it asked for",
        ),
    ],
)
def test_what_mergekit_is_known_to_say_comes_in_our_words(said, kind, message, run):
    found_kind, found = failure(run(f'echo "{said}"; exit 1'))
    assert (found_kind, found.startswith(message)) == (kind, True)


def test_a_pickle_source_is_refused_before_mergekit_is_asked(store, tmp_path):
    model = tiny.write_model(tmp_path / "model")
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    request = MergeRequest(recipe=tiny.linear_recipe(model), out=str(tmp_path / "out"), engine="mergekit")
    with pytest.raises(NotAModel, match="pickle"):
        jobs.start_merge(request)
    assert jobs.list_jobs().total == 0
