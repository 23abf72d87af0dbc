"""The launcher finds a server, or says over MCP how to get one."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LAUNCHER = ROOT / "scripts" / "launch-server"
INITIALIZE = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {"protocolVersion": "2025-06-18"}}


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """The launcher in a folder without a .venv."""
    folder = tmp_path / "clone"
    (folder / "scripts").mkdir(parents=True)
    for name in ("launch-server", "not-installed.py"):
        shutil.copy(ROOT / "scripts" / name, folder / "scripts" / name)
    return folder


def fake_server(path: Path) -> Path:
    """A command that tells what it sees instead of serving."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('#!/bin/sh\necho "$0 $* home=${MODEL_MERGING_HOME-unset} hf=${HF_HOME-unset}"\n', encoding="utf-8")
    path.chmod(0o755)
    return path


def run(launcher: Path, *, stdin: bytes = b"", path: str = "/usr/bin:/bin", **environment: str) -> str:
    variables = {"PATH": path, **environment}
    ended = subprocess.run([launcher, "--flag"], env=variables, input=stdin, capture_output=True, check=False, cwd="/")
    return ended.stdout.decode()


def test_the_clones_own_server_comes_first(clone, tmp_path):
    own = fake_server(clone / ".venv" / "bin" / "model-merging-mcp")
    fake_server(tmp_path / "bin" / "model-merging-mcp")
    said = run(clone / "scripts" / "launch-server", path=f"{tmp_path / 'bin'}:/usr/bin:/bin")
    assert said == f"{own} --flag home=unset hf=unset\n"


def test_else_an_installed_one(clone, tmp_path):
    installed = fake_server(tmp_path / "bin" / "model-merging-mcp")
    said = run(clone / "scripts" / "launch-server", path=f"{tmp_path / 'bin'}:/usr/bin:/bin")
    assert said.startswith(f"{installed} --flag")


def test_the_setting_wins_over_both(clone, tmp_path):
    fake_server(clone / ".venv" / "bin" / "model-merging-mcp")
    chosen = fake_server(tmp_path / "elsewhere" / "server")
    assert run(clone / "scripts" / "launch-server", MODEL_MERGING_SERVER=str(chosen)).startswith(f"{chosen} --flag")


def test_empty_settings_count_as_unset_and_others_are_handed_on(clone):
    fake_server(clone / ".venv" / "bin" / "model-merging-mcp")
    said = run(clone / "scripts" / "launch-server", MODEL_MERGING_HOME="", HF_HOME="/models", MODEL_MERGING_SERVER="")
    assert said.endswith("home=unset hf=/models\n")


def test_without_any_server_the_agent_reads_how_to_install_one(clone):
    call = {"jsonrpc": "2.0", "id": 3, "method": "tools/call", "params": {"name": "how_to_install"}}
    listing = {"jsonrpc": "2.0", "id": 2, "method": "tools/list"}
    stdin = "".join(f"{json.dumps(message)}\n" for message in (INITIALIZE, listing, call)).encode() + b"rubbish\n"
    answers = [json.loads(line) for line in run(clone / "scripts" / "launch-server", stdin=stdin).splitlines()]
    assert [answer["id"] for answer in answers] == [1, 2, 3]
    assert answers[0]["result"]["protocolVersion"] == "2025-06-18"
    assert [tool["name"] for tool in answers[1]["result"]["tools"]] == ["how_to_install"]
    assert f"in the clone {clone}: make setup" in answers[2]["result"]["content"][0]["text"]


def test_the_launcher_is_executable():
    assert os.access(LAUNCHER, os.X_OK)
