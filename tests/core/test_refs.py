"""Refs become something an engine can open, and nothing goes to the network."""

from pathlib import Path

import pytest

from mcp_server.core import paths
from mcp_server.core.errors import BadInput
from mcp_server.core.refs import is_hub_id, resolve_ref


@pytest.fixture(autouse=True)
def _own_caches(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MODEL_MERGING_HOME", str(tmp_path / "store"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))


def test_a_relative_folder_becomes_absolute(tmp_path: Path) -> None:
    (tmp_path / "persona").mkdir()
    assert resolve_ref("./persona", tmp_path) == str(tmp_path / "persona")


def test_a_folder_wins_over_a_hub_id_of_the_same_spelling(tmp_path: Path) -> None:
    (tmp_path / "owner" / "name").mkdir(parents=True)
    assert resolve_ref("owner/name", tmp_path) == str(tmp_path / "owner" / "name")


def test_a_hub_id_that_is_not_cached_stays_a_hub_id(tmp_path: Path) -> None:
    assert resolve_ref("meta-llama/Meta-Llama-3-8B", tmp_path) == "meta-llama/Meta-Llama-3-8B"


def test_a_cached_hub_id_becomes_the_snapshot_that_main_names(tmp_path: Path) -> None:
    model = tmp_path / "hub" / "models--owner--name"
    for commit in ("aaa", "bbb"):
        (model / "snapshots" / commit).mkdir(parents=True)
        (model / "snapshots" / commit / "config.json").write_text("{}", encoding="utf-8")
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text("aaa", encoding="utf-8")
    assert resolve_ref("owner/name", tmp_path) == str(model / "snapshots" / "aaa")


def test_a_missing_path_is_made_absolute_so_that_messages_show_it_whole(tmp_path: Path) -> None:
    assert resolve_ref("./not_there", tmp_path) == str(tmp_path / "not_there")


def test_the_demo_alias_is_the_demo_base(tmp_path: Path) -> None:
    assert resolve_ref("demo:smollm2-135m-instruct", tmp_path) == str(paths.demo_base_dir())


def test_an_unknown_alias_says_which_was_meant(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="Did you mean 'demo:smollm2-135m-instruct'"):
        resolve_ref("demo:smollm2-135m", tmp_path)


@pytest.mark.parametrize("ref", ["", " ", "a\x00b", "/m/\ud800", "~nobody-of-this-name/x", "./" + "x" * 300])
def test_text_that_cannot_be_a_path_is_refused(ref: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput):
        resolve_ref(ref, tmp_path)


@pytest.mark.parametrize(
    ("ref", "hub"),
    [("a/b", True), ("./a", False), ("/a/b", False), ("gpt2", True), ("a/b/c", False), ("../a", False), ("a b/c", False)],
)
def test_a_hub_id_is_a_name_with_or_without_an_owner(ref: str, hub: bool) -> None:
    assert is_hub_id(ref) is hub
