"""kill -9 at random moments of real work: the state is true, and what is resumed ends as if nothing had happened.

The moments are drawn from a fixed seed, spread over the time that an undisturbed run takes on this machine.
"""

import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from mcp_server import jobs
from mcp_server.core.models.job import JobRequest, MergeRequest
from mcp_server.jobs import process, store
from tests.faults import big

pytestmark = pytest.mark.slow
VICTIMS = ("worker", "runner", "both")
PATIENCE_SECONDS = 900
"""An upper bound for a busy machine; an idle one needs seconds."""


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("big")
    yield [big.write_model(folder / f"m{n}", n) for n in range(3)]
    shutil.rmtree(folder)


def weights(folder: Path) -> str:
    files = sorted(folder.glob("*.safetensors"))
    return hashlib.sha256(b"".join(hashlib.sha256(f.read_bytes()).digest() for f in files)).hexdigest()


def strike(job_id: str, after_seconds: float, victim: str) -> str:
    """Kill at that moment of the job; returns the state that is told right after."""
    deadline = time.monotonic() + after_seconds
    while time.monotonic() < deadline:
        jobs.wait(job_id, min(0.05, max(0.0, deadline - time.monotonic())))
    record = store.read(store.find(job_id))
    for name in ("worker", "runner"):
        identity = getattr(record, name)
        if victim in (name, "both") and process.is_alive(identity):
            with suppress(ProcessLookupError):
                os.kill(identity.pid, signal.SIGKILL)
    return jobs.wait(job_id, 60).state if victim == "worker" else jobs.status(job_id).state


def resume_to_the_end(job_id: str):
    ended = jobs.wait(job_id, PATIENCE_SECONDS)
    for _ in range(3):
        if ended.state == "succeeded":
            break
        assert ended.state == "interrupted", ended
        ended = jobs.wait(jobs.resume(job_id).job_id, PATIENCE_SECONDS)
    return ended


def survive(moments, start, check):
    """One undisturbed run for its duration, then `moments` disturbed ones, each with the same outcome."""
    began = time.monotonic()
    check(resume_to_the_end(start().job_id))
    duration = time.monotonic() - began
    chance = random.Random(2026)
    states = []
    for n in range(moments):
        started = start()
        states.append(strike(started.job_id, chance.uniform(0, duration), VICTIMS[n % 3]))
        ended = resume_to_the_end(started.job_id)
        assert ended.state == "succeeded", ended
        check(ended)
    assert set(states) <= {"interrupted", "succeeded", "running"}
    assert states.count("interrupted") >= moments // 3, f"hardly any kill hit: {states}"


def test_a_streaming_merge_survives_with_identical_bytes(models, store, tmp_path):
    seen: set[str] = set()

    def start():
        recipe = big.ties_recipe(*models)
        return jobs.start_merge(MergeRequest(recipe=recipe, out=str(tmp_path / "out"), engine="stream", seed=1, overwrite=True))

    def check(ended):
        seen.add(weights(tmp_path / "out"))
        assert len(seen) == 1
        assert sorted(p.name for p in tmp_path.iterdir()) == ["home", "out"]

    survive(15, start, check)
    shutil.rmtree(tmp_path / "out")


def test_a_mergekit_merge_survives_with_identical_bytes(models, store, tmp_path):
    seen: set[str] = set()

    def start():
        from tests.tiny import linear_recipe

        recipe = linear_recipe(*models)
        return jobs.start_merge(MergeRequest(recipe=recipe, out=str(tmp_path / "out"), engine="mergekit", seed=1, overwrite=True))

    def check(ended):
        seen.add(weights(tmp_path / "out"))
        assert len(seen) == 1
        assert sorted(p.name for p in tmp_path.iterdir()) == ["home", "out"]

    survive(6, start, check)
    shutil.rmtree(tmp_path / "out")


def test_a_comparison_survives_with_the_same_numbers(models, store):
    seen: list[object] = []

    def check(ended):
        seen.append({k: v for k, v in ended.result.items() if "path" not in k and "seconds" not in k and k != "details"})
        assert seen[0] == seen[-1]

    parameters = {"base": str(models[0]), "refs": [str(m) for m in models[1:]]}
    survive(5, lambda: jobs.start(JobRequest(kind="compare", parameters=parameters)), check)


def test_an_evaluation_survives_with_the_same_scores(store, tmp_path):
    folder = tmp_path / "small"
    maker = Path(__file__).parent.parent / "workers" / "tiny_language_model.py"
    subprocess.run([sys.executable, str(maker), str(folder)], check=True, capture_output=True)
    scores: list[object] = []

    def start():
        shutil.rmtree(store / "cache", ignore_errors=True)  # answers that are known already would leave nothing to disturb
        parameters = {
            "base": str(folder / "base"),
            "sources": {"other": str(folder / "other")},
            "suites": ["perplexity"],
            "dtype": "float32",
            "limit": 4,
        }
        return jobs.start(JobRequest(kind="evaluate", parameters=parameters))

    def check(ended):
        scores.append(ended.result["capabilities"])
        assert scores[0] == scores[-1]

    survive(4, start, check)


def test_a_verification_survives_with_the_same_verdict(models, store, tmp_path):
    recipe = big.ties_recipe(*models)
    out = jobs.wait(jobs.start_merge(MergeRequest(recipe=recipe, out=str(tmp_path / "out"), engine="stream", seed=1)).job_id, 120)
    verdicts: set[str] = set()

    def check(ended):
        verdicts.add(ended.result["verdict"])
        assert len(verdicts) == 1

    survive(5, lambda: jobs.start(JobRequest(kind="verify", parameters={"out": out.output, "full": True})), check)
    shutil.rmtree(tmp_path / "out")
