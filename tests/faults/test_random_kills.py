"""kill -9 of worker, runner, server and all three at random moments of real work, started by a real server.

After each kill the state is true, and what is resumed ends as if nothing had happened: the same bytes, numbers, verdict, scores.
The moments are spread over the time that an undisturbed run takes on this machine, from the call to the end, one at random in
each equal part. A failure names its seed, victim and moment; MODEL_MERGING_KILL_SEED draws others.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from mcp_server import jobs
from mcp_server.jobs import process, store
from mcp_server.jobs.store import Record
from mcp_server.schemas.job import JobStatus, MergeRequest
from tests.faults import big
from tests.jobs.watching import LONG
from tests.tiny import linear_recipe
from tests.wire import HANDSHAKE, Wire

pytestmark = pytest.mark.slow
SEED = int(os.environ.get("MODEL_MERGING_KILL_SEED", "2026"))
VICTIMS = ("server", "worker", "runner", "all three")
PATIENCE_SECONDS = 300
"""An upper bound for a busy machine; an idle one needs seconds."""


@dataclass(frozen=True)
class Work:
    """One call of the server, and what its result must be equal to in every run."""

    tool: str
    arguments: dict[str, Any]
    outcome: Callable[[JobStatus], Any]
    prepare: Callable[[], None] = lambda: None


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Path]]:
    folder = tmp_path_factory.mktemp("big")
    yield [big.write_model(folder / f"m{n}", n) for n in range(3)]
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def speakers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Language models of a few kilobytes that transformers and lm-eval can load."""
    folder = tmp_path_factory.mktemp("speakers")
    maker = Path(__file__).parent.parent / "workers" / "tiny_language_model.py"
    subprocess.run([sys.executable, str(maker), str(folder)], check=True, capture_output=True)
    return folder


@pytest.fixture
def merged(store: Path, speakers: Path, tmp_path: Path) -> Path:
    """A merge of the speakers, made without any disturbance."""
    recipe = linear_recipe(speakers / "base", speakers / "other")
    started = jobs.start_merge(MergeRequest(recipe=recipe, out=str(tmp_path / "merged"), engine="stream", seed=1))
    ended = jobs.wait(started.job_id, PATIENCE_SECONDS)
    assert ended.state == "succeeded", ended
    return tmp_path / "merged"


def survives(work: Work, moments: int, home: Path, folder: Path) -> None:
    """One undisturbed run, then one for each moment with a kill in it: all with the same outcome, and nothing left over."""
    chance = random.Random(f"{SEED} {work.tool} {moments}")
    duration, expected = undisturbed(work, home, folder)
    for n in range(moments):
        victim = VICTIMS[n % len(VICTIMS)]
        part = (n // len(VICTIMS) + chance.random()) / (moments / len(VICTIMS))
        moment = part * duration
        met = False
        while not met:
            with told(f"seed {SEED}, kill {n + 1} of {moments}: {victim}, {moment:.3f} s of {duration:.3f} s after the call"):
                work.prepare()
                began = time.monotonic()
                job_id, met = strike(work, home, folder, moment, victim)
                ended = resumed_to_the_end(job_id, victim)
                took = time.monotonic() - began
                if victim == "server" or not met:
                    duration = min(duration, took)  # it ran on undisturbed; the first run was a cold one
                assert work.outcome(ended) == expected
                assert_nothing_is_left(home, folder)
            moment = min(moment, took) / 2  # when the machine was faster this time, and the job over before the kill


def undisturbed(work: Work, home: Path, folder: Path) -> tuple[float, Any]:
    server = serve(home, folder)
    work.prepare()
    began = time.monotonic()
    server.call(1, work.tool, **work.arguments)
    ended = jobs.wait(server.result_of(1)["job_id"], PATIENCE_SECONDS)
    duration = time.monotonic() - began
    assert ended.state == "succeeded", ended
    assert server.leave() == 0
    assert_nothing_is_left(home, folder)
    return duration, work.outcome(ended)


def strike(work: Work, home: Path, folder: Path, moment: float, victim: str) -> tuple[str, bool]:
    """Call, and kill at that moment: the job, and whether the kill met it. A server killed before it made a job is asked anew."""
    known = names_of_jobs(home)
    server = serve(home, folder)
    server.call(1, work.tool, **work.arguments)
    record = wait_for_moment(time.monotonic() + moment, home, known)
    met = record is None or record.state in ("queued", "running")
    if victim in ("server", "all three"):
        server.kill()
    if record is not None:
        kill_those_of(record, victim)
    if victim in ("server", "all three"):
        made = names_of_jobs(home) - known  # it may have made the job between our look and its death
        if not made:
            server = serve(home, folder)
            server.call(1, work.tool, **work.arguments)
            made = {server.result_of(1)["job_id"]}
            assert server.leave() == 0
    else:
        made = {server.result_of(1)["job_id"]}
        assert server.leave() == 0
    assert len(made) == 1
    return made.pop(), met


def wait_for_moment(moment: float, home: Path, known: set[str]) -> Record | None:
    """The record of the job that is new, if there is one, at that moment or as soon as the job is over."""
    while True:
        made = names_of_jobs(home) - known
        record = store.read(store.find(made.pop())) if made else None
        left = moment - time.monotonic()
        if left <= 0 or (record is not None and record.state not in ("queued", "running")):
            return record
        Event().wait(min(left, 0.1))


def kill_those_of(record: Record, victim: str) -> None:
    for name in ("worker", "runner"):
        identity = store.runner_of(store.find(record.job_id), record) if name == "runner" else record.worker
        if victim in (name, "all three") and identity is not None and process.is_alive(identity):
            with suppress(ProcessLookupError):
                os.kill(identity.pid, signal.SIGKILL)


def resumed_to_the_end(job_id: str, victim: str) -> JobStatus:
    ended = jobs.wait(job_id, PATIENCE_SECONDS)
    if ended.state == "interrupted":
        assert ended.error is not None and ended.error["next_step"].startswith("resume the job"), ended
        ended = jobs.wait(jobs.resume(job_id).job_id, PATIENCE_SECONDS)
    assert ended.state == "succeeded", ended
    attempts = store.read(store.find(job_id)).attempt
    assert attempts <= 2, f"{attempts} attempts after one kill"
    return ended


def assert_nothing_is_left(home: Path, folder: Path) -> None:
    """No process of ours, no partial output, no lock, no temporary file, no mark of an active job."""
    deadline = time.monotonic() + LONG
    while (left := processes_about(home)) and time.monotonic() < deadline:
        Event().wait(0.05)
    assert left == []
    stray = [p for p in folder.rglob("*") if home not in p.parents and (p.name.startswith(".") or ".partial-" in p.name)]
    assert stray == []
    assert [p.name for p in (home / "jobs" / ".active").iterdir()] == []


def processes_about(home: Path) -> list[str]:
    """Command lines of the living processes that work in this store."""
    found = []
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            if entry.name.isdigit() and str(home / "jobs").encode() in (line := (entry / "cmdline").read_bytes()):
                found.append(line.replace(b"\0", b" ").decode())
    return found


def names_of_jobs(home: Path) -> set[str]:
    jobs_folder = home / "jobs"
    return {p.name for p in jobs_folder.iterdir() if not p.name.startswith(".")} if jobs_folder.is_dir() else set()


def serve(home: Path, folder: Path) -> Wire:
    roots = os.pathsep.join((str(folder), str(folder.parent)))
    server = Wire(home, folder, MODEL_MERGING_ROOTS=roots, OMP_NUM_THREADS="1")
    server.send(*HANDSHAKE)
    server.answer_to(0)
    return server


@contextmanager
def told(where: str) -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        error.add_note(where)
        raise


def weights_of(folder: Path) -> Callable[[JobStatus], str]:
    def weights(ended: JobStatus) -> str:
        assert ended.output == str(folder)
        files = sorted(folder.glob("*.safetensors"))
        return hashlib.sha256(b"".join(hashlib.sha256(f.read_bytes()).digest() for f in files)).hexdigest()

    return weights


def test_a_streaming_merge_survives_with_identical_bytes(models: list[Path], store: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = {"recipe": big.ties_recipe(*models), "out": str(out), "engine": "stream", "seed": 1, "overwrite": True}
    survives(Work("launch_merge", arguments, weights_of(out)), 12, store, tmp_path)
    shutil.rmtree(out)


def test_a_mergekit_merge_survives_with_identical_bytes(speakers: Path, store: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    recipe = linear_recipe(speakers / "base", speakers / "other")
    arguments = {"recipe": recipe, "out": str(out), "engine": "mergekit", "seed": 1, "overwrite": True}
    survives(Work("launch_merge", arguments, weights_of(out)), 4, store, tmp_path)


def test_a_comparison_survives_with_the_same_numbers(models: list[Path], store: Path, tmp_path: Path) -> None:
    def numbers(ended: JobStatus) -> dict[str, Any]:
        assert ended.result is not None
        details = json.loads((store / "jobs" / ended.job_id / "comparison.json").read_text(encoding="utf-8"))
        return {k: v for k, v in (details | ended.result).items() if k not in ("seconds", "path")}

    arguments = {"base": str(models[0]), "refs": [str(m) for m in models[1:]]}
    survives(Work("compare_models", arguments, numbers), 8, store, tmp_path)


def test_a_verification_survives_with_the_same_verdict(merged: Path, store: Path, tmp_path: Path) -> None:
    def verdict(ended: JobStatus) -> list[Any]:
        assert ended.result is not None
        return [ended.result["verdict"], *((check["name"], check["passed"]) for check in ended.result["checks"])]

    survives(Work("verify_merge", {"out": str(merged), "full": True}, verdict), 4, store, tmp_path)


def test_an_evaluation_survives_with_the_same_scores(merged: Path, store: Path, tmp_path: Path) -> None:
    def scores(ended: JobStatus) -> Any:
        assert ended.result is not None
        return ended.result["capabilities"]

    def forget_the_answers() -> None:
        shutil.rmtree(store / "cache", ignore_errors=True)  # answers that are known would leave nothing to disturb

    arguments = {"out": str(merged), "suites": ["perplexity"], "limit": 4}
    survives(Work("evaluate_merge", arguments, scores, forget_the_answers), 4, store, tmp_path)
