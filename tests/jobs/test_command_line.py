"""Jobs as a person at the shell meets them."""

import json
import os
import signal
import subprocess
import sys
import time

from mcp_server import cli, jobs
from tests import tiny
from tests.jobs.watching import LONG, reports_progress, until


def test_prune_removes_what_is_over_and_says_how_many(job, capsys):
    for _ in range(2):
        jobs.wait(job().job_id, LONG)
    running = job({"do": "block"})
    until(running.job_id, reports_progress)
    assert cli.run(["jobs", "--prune", "--json"]) == 0
    said = capsys.readouterr()
    assert [j["job_id"] for j in json.loads(said.out)["jobs"]] == [running.job_id]
    assert "removed 2 finished jobs" in said.err


def test_ctrl_c_leaves_the_merge_resumable_and_prints_how(merge, store, tmp_path):
    """The merge waits behind another one, so that the moment of the Ctrl-C is certain."""
    until(merge({"do": "block"}, out="first").job_id, reports_progress)
    recipe = tmp_path / "recipe.yml"
    recipe.write_text(tiny.linear_recipe(tmp_path / "model"), encoding="utf-8")
    command = [sys.executable, "-m", "mcp_server.cli", "merge", str(recipe), str(tmp_path / "out"), "--engine", "stream"]
    shell = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + LONG
    while not (waiting := jobs.list_jobs(state="queued").jobs):
        assert time.monotonic() < deadline and shell.poll() is None
    os.kill(shell.pid, signal.SIGINT)
    _, said = shell.communicate(timeout=LONG)
    assert shell.returncode == 130
    assert f"model-merging resume {waiting[0].job_id}" in " ".join(said.split())
    assert jobs.status(waiting[0].job_id).state == "interrupted"
    assert jobs.resume(waiting[0].job_id).state == "queued"


def test_a_result_that_is_lost_or_damaged_is_never_a_good_answer(job, store, capsys):
    job_id = jobs.wait(job().job_id, 300).job_id
    result = store / "jobs" / job_id / "result.json"
    for text, code, said in (('{"verdict": "fine"}', 2, "result.json is damaged"), (None, 4, "result.json cannot be read")):
        result.unlink() if text is None else result.write_text(text, encoding="utf-8")
        assert cli.run(["wait", job_id]) == code
        assert said in " ".join(capsys.readouterr().err.split())
