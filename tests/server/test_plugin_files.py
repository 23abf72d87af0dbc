"""The files by which clients find skill and server agree with each other and with the package."""

import json
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def read(path: str):
    return json.loads((ROOT / path).read_text(encoding="utf-8"))


def test_the_server_is_declared_once_and_started_by_the_launcher():
    servers = read(".mcp.json")["mcpServers"]
    assert list(servers) == ["model-merging"]
    assert "mcpServers" not in read(".claude-plugin/plugin.json")


@pytest.mark.parametrize("start", ["", "skills/model-merging"])
def test_the_declared_command_finds_the_launcher_from_any_folder_of_the_clone(start):
    assert started_in(ROOT / start).startswith("usage: model-merging-mcp")


def test_as_a_plugin_the_declared_command_starts_the_plugins_own_launcher(tmp_path):
    assert started_in(tmp_path, CLAUDE_PLUGIN_ROOT=str(ROOT)).startswith("usage: model-merging-mcp")


def test_outside_of_clone_and_plugin_nothing_of_somebody_else_is_run(tmp_path):
    (tmp_path / "scripts").mkdir()
    foreign = tmp_path / "scripts" / "launch-server"
    foreign.write_text("#!/bin/sh\necho foreign\n", encoding="utf-8")
    foreign.chmod(0o755)
    assert started_in(tmp_path, CLAUDE_PLUGIN_ROOT="/nowhere") == ""


def started_in(folder: Path, **environment: str) -> str:
    """What the command of .mcp.json says to `--help`, started as a client starts it."""
    server = read(".mcp.json")["mcpServers"]["model-merging"]
    command = [server["command"], server["args"][0], server["args"][1] + " --help"]
    variables = {"PATH": "/usr/bin:/bin", "HOME": str(folder), **environment}
    return subprocess.run(command, cwd=folder, env=variables, capture_output=True, check=False, text=True).stdout


def test_a_trusted_clone_approves_the_server_and_only_read_only_tools():
    settings = read(".claude/settings.json")
    assert settings["enabledMcpjsonServers"] == ["model-merging"]
    contract = json.loads((Path(__file__).parent / "contract.json").read_text(encoding="utf-8"))
    reads = {f"mcp__model-merging__{tool['name']}" for tool in contract["tools"] if tool["annotations"]["readOnlyHint"]}
    assert set(settings["permissions"]["allow"]) == reads


def test_one_text_of_the_skill():
    link = ROOT / ".claude" / "skills" / "model-merging"
    assert link.is_symlink() and not link.readlink().is_absolute()
    assert link.resolve() == ROOT / "skills" / "model-merging"


def test_all_versions_are_the_packages():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    registry = read("server.json")
    assert {read(".claude-plugin/plugin.json")["version"], registry["version"], registry["packages"][0]["version"]} == {version}


def test_the_marketplace_offers_this_folder():
    plugins = read(".claude-plugin/marketplace.json")["plugins"]
    assert [(p["name"], p["source"]) for p in plugins] == [("model-merging", "./")]
