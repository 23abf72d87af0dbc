"""The store is its owner's only, whatever the umask; one that others may write is not trusted; locks keep clear of stdio."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from mcp_server import jobs
from mcp_server.errors import NotAllowed
from mcp_server.system import files, paths
from tests import tiny

START = """
import sys
from mcp_server import jobs
from mcp_server.schemas.job import MergeRequest
started = jobs.start_merge(MergeRequest(recipe=sys.argv[1], out=sys.argv[2], engine="mergekit"), worker="tests.fake_worker")
assert jobs.wait(started.job_id, 60).state == "succeeded"
"""


@pytest.mark.parametrize("mask", [0o022, 0o000])
def test_every_file_and_folder_of_the_store_is_its_owners_only(mask, tmp_path):
    recipe = tiny.linear_recipe(tiny.write_model(tmp_path / "model"), script=[{"do": "progress"}])
    home = tmp_path / "home"
    command = [sys.executable, "-c", START, recipe, str(tmp_path / "out")]
    subprocess.run(command, check=True, env={**os.environ, "MODEL_MERGING_HOME": str(home)}, umask=mask)
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    others = stat.S_IWGRP | stat.S_IWOTH | stat.S_IRGRP | stat.S_IROTH
    open_to_others = [p.relative_to(home) for p in home.rglob("*") if not p.is_symlink() and p.stat().st_mode & others]
    assert open_to_others == []


def test_a_store_that_others_may_write_is_not_trusted(store):
    files.private_folder(paths.jobs_dir() / ".active")
    store.chmod(0o777)
    with pytest.raises(NotAllowed, match=r"(?s)others may write .* chmod 700"):
        jobs.dispatch()


def test_a_store_that_others_may_read_is_closed(store):
    files.private_folder(paths.jobs_dir())
    store.chmod(0o755)
    files.private_folder(paths.jobs_dir())
    assert stat.S_IMODE(store.stat().st_mode) == 0o700


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1, 2)])
def test_a_lock_never_gets_the_number_of_a_standard_stream(closed, tmp_path):
    script = f"""
import os
from pathlib import Path
from mcp_server.jobs.locks import try_lock
for number in {closed}:
    os.close(number)
handle = try_lock(Path({str(tmp_path / "lock")!r}))
Path({str(tmp_path / "number")!r}).write_text(str(handle))
"""
    subprocess.run([sys.executable, "-c", script], check=False)
    assert int((tmp_path / "number").read_text(encoding="utf-8")) > 2


def test_no_home_folder_is_said_with_the_setting_that_helps(tmp_path: Path):
    script = "import pwd, os; os.getuid = lambda: 4242\nfrom mcp_server.cli import run\nraise SystemExit(run(['jobs']))"
    environment = {k: v for k, v in os.environ.items() if k not in ("HOME", "MODEL_MERGING_HOME", "XDG_STATE_HOME")}
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, env=environment)
    assert ended.returncode == 2
    assert "set MODEL_MERGING_HOME" in " ".join(ended.stderr.split())
