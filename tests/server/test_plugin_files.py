"""The files by which clients find skill and server agree with each other and with the package."""

import json
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]


def read(path: str):
    return json.loads((ROOT / path).read_text(encoding="utf-8"))


def test_the_server_is_declared_once_and_started_by_the_launcher():
    servers = read(".mcp.json")["mcpServers"]
    assert list(servers) == ["model-merging"]
    assert servers["model-merging"]["command"] == "${CLAUDE_PLUGIN_ROOT:-.}/scripts/launch-server"
    assert "mcpServers" not in read(".claude-plugin/plugin.json")


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
