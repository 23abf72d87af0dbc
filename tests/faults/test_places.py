"""Where people run it: plain terminals, odd names, mounts, read-only installations, several users; and a stop in mid-exchange."""

import os
import pty
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from mcp_server.errors import NotAllowed
from mcp_server.system import outputs, paths
from tests import tiny

root_on_linux = pytest.mark.skipif(sys.platform != "linux" or os.getuid() != 0, reason="needs root on Linux")
PROGRAM = [sys.executable, "-c", "import sys; from mcp_server.cli import run; raise SystemExit(run(sys.argv[1:]))"]


def on_a_terminal(*arguments: str, term: str) -> bytes:
    """What a command writes to a terminal of this kind."""
    here, there = pty.openpty()
    environment = {**os.environ, "TERM": term, "COLUMNS": "80"}  # a new terminal is 0 wide
    for switch in ("NO_COLOR", "FORCE_COLOR", "COLORTERM"):
        environment.pop(switch, None)
    with subprocess.Popen([*PROGRAM, *arguments], stdin=there, stdout=there, stderr=there, env=environment):
        os.close(there)
        written = b""
        try:
            while block := os.read(here, 65536):
                written += block
        except OSError:  # how Linux says that the other end is closed
            pass
    os.close(here)
    return written


@pytest.mark.parametrize("arguments", [["jobs"], ["inspect", "nothing-here"]])
def test_a_dumb_terminal_gets_no_escape_sequences(arguments: list[str], store: Path) -> None:
    written = on_a_terminal(*arguments, term="dumb")
    assert written
    assert b"\x1b" not in written


def test_a_terminal_that_can_gets_them(store: Path) -> None:
    assert b"\x1b[" in on_a_terminal("jobs", term="xterm-256color")


@pytest.mark.skipif(sys.platform != "linux", reason="other systems take no such names")
@pytest.mark.parametrize("command", ["inspect --json", "verify", "report"])
def test_a_folder_whose_name_is_no_text_is_refused_by_name(command: str, store: Path, tmp_path: Path) -> None:
    folder = tiny.write_model(Path(os.fsdecode(bytes(tmp_path) + b"/m\xff")))
    name, *options = command.split()
    ended = subprocess.run([*PROGRAM, name, str(folder), *options], capture_output=True, text=True, check=False)
    said = ended.stdout + ended.stderr
    assert (ended.returncode, "Traceback" in said) == (2, False)
    assert "is not UTF-8" in said
    assert r"m\udcff" in said.replace("\\\\", "\\")
    assert "rename the file or folder" in said


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's list of mounts")
@pytest.mark.parametrize("inside", ["", "/below/it"])
def test_an_output_that_is_or_holds_a_mount_point_is_refused(
    inside: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "my out"
    listed = str(out).replace(" ", "\\040")
    mounts = tmp_path / "mountinfo"
    mounts.write_text(f"36 35 98:0 / {listed}{inside} rw,noatime shared:1 - ext4 /dev/sdb1 rw\n", encoding="utf-8")
    monkeypatch.setattr(outputs, "_MOUNTS", mounts)
    with pytest.raises(NotAllowed, match="is a mount point"):
        outputs.require_place(out)
    outputs.require_place(tmp_path / "my out beside")


STOP = """
import os, signal, sys
from pathlib import Path
from mcp_server.system import outputs
place, moment, can_exchange = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "exchange"
count = 0
def stopping(step):
    def wrapped(*arguments):
        global count
        if count == moment:
            os.kill(os.getpid(), signal.SIGKILL)
        count += 1
        return step(*arguments)
    return wrapped
outputs.exchange = stopping(outputs.exchange) if can_exchange else lambda one, other: False
Path.rename = stopping(Path.rename)
outputs.replace_folder(place.with_name("new"), place, place.with_name("aside"))
"""


@pytest.mark.parametrize("moment", [0, 1, 2])
@pytest.mark.parametrize("how", ["exchange", "two renames"])
def test_a_stop_at_any_step_of_the_exchange_leaves_old_and_new_whole(how: str, moment: int, tmp_path: Path) -> None:
    if how == "exchange":
        probe = [tmp_path / "one", tmp_path / "other"]
        for folder in probe:
            folder.mkdir()
        if not outputs.exchange(*probe):
            pytest.skip("this file system cannot exchange two folders")
    whole = {"a": "1", "b": "2"}
    for name in ("new", "out"):
        (tmp_path / name).mkdir()
        for file, text in whole.items():
            (tmp_path / name / file).write_text(name + text, encoding="utf-8")
    command = [sys.executable, "-c", STOP, str(tmp_path / "out"), str(moment), how]
    assert subprocess.run(command, check=False).returncode == (0 if moment == 2 else -9)
    found = {
        name: {file.name: file.read_text(encoding="utf-8") for file in (tmp_path / name).iterdir()}
        for name in ("new", "out", "aside")
        if (tmp_path / name).exists()
    }
    old, new = ({file: name + text for file, text in whole.items()} for name in ("out", "new"))
    before, after = {"new": new, "out": old}, {"out": new, "aside": old}
    between = {"new": old, "out": new} if how == "exchange" else {"new": new, "aside": old}
    assert found == (before, between, after)[moment]


READ_ONLY = """
mount --bind "$1" "$1" && mount -o remount,bind,ro "$1" && cd / && exec "$2" -c '
import os
import numpy as np
from mcp_server.engine import kernels
assert kernels.dot(np.ones(8, np.float32), np.ones(8, np.float32)) == 8
print(os.environ["NUMBA_CACHE_DIR"])'
"""


@root_on_linux
def test_a_read_only_installation_keeps_compiled_code_in_the_store(tmp_path: Path) -> None:
    """The package really is read-only: bound so in a mount namespace of the child's own; and there is no home folder."""
    home = tmp_path / "home"
    environment = {"PATH": os.environ["PATH"], "MODEL_MERGING_HOME": str(home), "PYTHONPATH": str(paths.PACKAGE.parent)}
    if subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("this machine does not let root make a mount namespace")
    command = ["unshare", "-m", "sh", "-c", READ_ONLY, "sh", str(paths.PACKAGE), sys.executable]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout.strip()) == (0, str(home / "cache" / "compiled")), ended.stderr
    assert [*home.rglob("kernels.dot-*.nbi")] != []


OTHER_USER = """
import os, sys
from mcp_server.cli import run
theirs, ours = sys.argv[1:]
os.environ["MODEL_MERGING_HOME"] = theirs
assert run(["jobs"]) == 0
run(["status", "merge-20260101-000000-aaaa"])  # what these commands import is read while it may be
os.setgroups([]); os.setgid(65534); os.setuid(65534)
print("---", file=sys.stderr, flush=True)
refused = run(["jobs"])
os.environ["MODEL_MERGING_HOME"] = ours
print(refused, run(["jobs"]), file=sys.stderr)
from mcp_server.system import files, paths
files.private_folder(paths.jobs_dir())
"""


@root_on_linux
def test_a_second_user_is_refused_the_store_of_the_first_and_has_their_own() -> None:
    ground = Path(tempfile.mkdtemp())  # tmp_path is closed to others
    try:
        ground.chmod(0o777)
        (ground / "theirs").mkdir(mode=0o700)
        (ground / "theirs" / "jobs").mkdir(mode=0o700)
        command = [sys.executable, "-c", OTHER_USER, str(ground / "theirs"), str(ground / "ours")]
        ended = subprocess.run(command, capture_output=True, text=True, check=False, cwd=paths.PACKAGE.parent)
        said = ended.stderr.partition("---")[2]
        assert (ended.returncode, "Traceback" in ended.stderr, said.split()[-2:]) == (0, False, ["2", "0"]), ended.stderr
        assert "theirs" in said
        owner = (ground / "ours" / "jobs").stat()
        assert (owner.st_uid, owner.st_mode & 0o777) == (65534, 0o700)
        assert (ground / "theirs").stat().st_uid == 0
    finally:
        shutil.rmtree(ground)
