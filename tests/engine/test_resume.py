"""The same bytes for any number of threads and after any interruption."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mcp_server.errors import InputChanged
from tests.engine.synthetic import run, write_two_sources

DIE_AT = """
import os, signal, sys, time
from pathlib import Path
from mcp_server.engine import blocks, writer
from mcp_server.engine.merge import merge
from mcp_server.engine.request import Request
blocks.BLOCK_ELEMENTS, writer.BATCH_BYTES = 50, 1
calls = 0
out = Path(sys.argv[2])
journal = out.with_suffix(".journal")
def report(stage, done, total, unit):
    global calls
    calls += 1
    # the writer is a thread of its own, and late on a busy machine: the moment is the first from there on at which it has
    # finished something, with a little time for it at each
    for _ in range(50 if calls >= int(sys.argv[3]) else 0):
        if len(journal.read_text(encoding="utf-8").splitlines()) > 1:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.01)
merge(Request(Path(sys.argv[1]).read_text(), out, journal, seed=3, shard_bytes=2000, threads=2), report)
"""


def weights(folder: Path) -> dict[str, str]:
    """Everything in an output but what says when it was made."""
    names = sorted(path.name for path in folder.iterdir() if path.name not in ("merge_provenance.json", "README.md"))
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    return write_two_sources(tmp_path, "METHOD")


@pytest.mark.parametrize(
    "method", ["task_arithmetic", "ties", "dare_linear", "dare_ties", "breadcrumbs_ties", "della", "nuslerp"]
)
@pytest.mark.usefixtures("small_blocks")
def test_threads_do_not_change_a_byte(recipe: str, tmp_path: Path, method: str) -> None:
    text = recipe.replace("METHOD", method)
    for threads in (1, 2, 5):
        run(text, tmp_path / f"out{threads}", threads=threads, seed=11)
    assert weights(tmp_path / "out1") == weights(tmp_path / "out2") == weights(tmp_path / "out5")


def test_a_kill_at_any_moment_and_resume_give_the_same_bytes(recipe: str, tmp_path: Path) -> None:
    text = recipe.replace("METHOD", "dare_ties")
    (tmp_path / "recipe.yml").write_text(text, encoding="utf-8")

    def merge_and_die(out: Path, at: int) -> int:
        command = [sys.executable, "-c", DIE_AT, str(tmp_path / "recipe.yml"), str(out), str(at)]
        return subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False).returncode

    assert merge_and_die(tmp_path / "whole", 10**9) == 0
    killed = tmp_path / "killed"
    assert [merge_and_die(killed, at) for at in (20, 2)] == [-9, -9]
    assert len(killed.with_suffix(".journal").read_text(encoding="utf-8").splitlines()) > 1
    assert merge_and_die(killed, 10**9) == 0
    assert weights(killed) == weights(tmp_path / "whole")
    provenance = [json.loads((folder / "merge_provenance.json").read_text("utf-8")) for folder in (killed, tmp_path / "whole")]
    assert provenance[0]["landed"] == provenance[1]["landed"]
    assert [p["resumed"] for p in provenance] == [True, False]


def test_a_finished_merge_resumes_to_itself_and_keeps_its_seed(recipe: str, tmp_path: Path) -> None:
    text = recipe.replace("METHOD", "dare_linear")
    first = run(text, tmp_path / "out")
    before = weights(tmp_path / "out")
    again = run(text, tmp_path / "out")
    assert (again["seed"], again["resumed"], weights(tmp_path / "out")) == (first["seed"], True, before)


def test_resume_refuses_a_changed_input_and_names_it(recipe: str, tmp_path: Path) -> None:
    text = recipe.replace("METHOD", "ties")
    run(text, tmp_path / "out", seed=1)
    os.utime(tmp_path / "base" / "model.safetensors", (1, 1))
    with pytest.raises(InputChanged, match=r"base/model\.safetensors is not the file this merge began with"):
        run(text, tmp_path / "out", seed=1)


def test_resume_starts_again_when_the_partial_output_is_gone(recipe: str, tmp_path: Path) -> None:
    text = recipe.replace("METHOD", "ties")
    run(text, tmp_path / "out", seed=1)
    before = weights(tmp_path / "out")
    (tmp_path / "out" / "model.safetensors").unlink()
    assert run(text, tmp_path / "out", seed=1)["resumed"] is False
    assert weights(tmp_path / "out") == before


def test_a_torn_last_line_of_the_journal_loses_only_that_line(recipe: str, tmp_path: Path) -> None:
    text = recipe.replace("METHOD", "ties")
    run(text, tmp_path / "out", seed=1)
    before, journal = weights(tmp_path / "out"), tmp_path / "out.journal"
    journal.write_text(journal.read_text(encoding="utf-8")[:-30], encoding="utf-8")
    run(text, tmp_path / "out", seed=1)
    assert weights(tmp_path / "out") == before
