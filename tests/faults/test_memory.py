"""A memory limit that is reached: the kernel ends the worker, and the job says so with the numbers that matter."""

import json
import os
import signal
import subprocess
import sys

from mcp_server import jobs
from mcp_server.jobs import store as stored
from mcp_server.system.machine import limit_bytes
from tests.jobs.watching import LONG, reports_progress, until

MIB = 1 << 20
CLIENT = """
import os, sys
from pathlib import Path
procs, out, recipe = sys.argv[1:]
from mcp_server import jobs
from mcp_server.schemas.job import MergeRequest
Path(procs).write_text(str(os.getpid()))  # after the imports, which need more than a worker may have
started = jobs.start_merge(MergeRequest(recipe=recipe, out=out, engine="mergekit"), worker="tests.fake_worker")
print(jobs.wait(started.job_id, 300).model_dump_json())
"""


def test_a_worker_that_the_kernel_ends_is_reported_as_out_of_memory_with_estimate_and_limit(store, memory_group, tmp_path):
    from tests import tiny

    limit = 900 * MIB
    procs = memory_group(limit)
    recipe = tiny.linear_recipe(tiny.write_model(tmp_path / "model"), script=[{"do": "allocate", "mib": 1200}])
    done = subprocess.run(
        [sys.executable, "-c", CLIENT, str(procs), str(tmp_path / "out"), recipe], capture_output=True, text=True, check=False
    )
    status = json.loads(done.stdout)
    error = status["error"]
    assert (status["state"], error["type"], status["exit_code"]) == ("failed", "OutOfMemory", -9)
    assert (error["exit_code"], error["details"]["limit_bytes"]) == (4, limit)
    assert error["details"]["estimate_bytes"] > 0
    assert 400 * MIB < error["details"]["peak_anon_bytes"] <= limit
    assert "the kernel ended the worker for lack of memory: it held 0." in error["message"]
    assert "the limit is 0.88 GiB, the estimate was 0." in error["message"]
    assert "engine 'stream'" in error["next_step"]
    assert not (tmp_path / "out").exists()


def test_an_engine_that_the_kernel_ends_under_its_worker_is_out_of_memory_too(store, memory_group, tmp_path, monkeypatch):
    """mergekit is a child of the worker, which lives to tell that it was killed; the runner knows by whom."""
    from tests import tiny

    command = tmp_path / "bin" / "mergekit-yaml"
    command.parent.mkdir()
    command.write_text(f"#!{sys.executable}\nheld = [b'1' * (8 << 20) for _ in range(200)]\n", encoding="utf-8")
    command.chmod(0o755)
    monkeypatch.setenv("MODEL_MERGING_MERGEKIT_BIN", str(command.parent))
    recipe = tiny.linear_recipe(tiny.write_model(tmp_path / "model"))
    client = CLIENT.replace(', worker="tests.fake_worker"', "")
    done = subprocess.run(
        [sys.executable, "-c", client, str(memory_group(900 * MIB)), str(tmp_path / "out"), recipe],
        capture_output=True,
        text=True,
        check=False,
    )
    error = json.loads(done.stdout)["error"]
    assert (error["type"], error["details"]["limit_bytes"]) == ("OutOfMemory", 900 * MIB)
    assert error["message"].startswith("the kernel ended the engine for lack of memory: it held")
    assert "engine 'stream'" in error["next_step"]


def test_somebody_elses_lack_of_memory_is_not_taken_for_ours(job, memory_group):
    """The kernel counts its kills by cgroup; a worker that was killed by hand meanwhile was not killed for its memory."""
    started = job({"do": "block"})
    until(started.job_id, reports_progress)
    procs = memory_group(64 * MIB)
    greedy = "import os, sys; open(sys.argv[1], 'w').write(str(os.getpid())); held = [b'1' * (8 << 20) for _ in range(50)]"
    other = subprocess.run([sys.executable, "-c", greedy, str(procs)], check=False)
    assert other.returncode == -signal.SIGKILL
    os.kill(stored.read(stored.find(started.job_id)).worker.pid, signal.SIGKILL)
    found = jobs.wait(started.job_id, LONG)
    assert (found.state, found.error["type"]) == ("interrupted", "RunFailed")


def test_the_limit_is_the_containers_not_the_machines(memory_group):
    procs = memory_group(777 * MIB)
    code = """
import os, sys
open(sys.argv[1], "w").write(str(os.getpid()))
from mcp_server.system.machine import limit_bytes
print(limit_bytes())
"""
    done = subprocess.run([sys.executable, "-c", code, str(procs)], capture_output=True, text=True, check=True)
    assert int(done.stdout) == 777 * MIB
    assert limit_bytes() <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
