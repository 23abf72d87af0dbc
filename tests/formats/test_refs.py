"""Refs become something an engine can open, and nothing goes to the network."""

from pathlib import Path

import pytest

from mcp_server.errors import BadInput, NotFound
from mcp_server.formats.checkpoint import locate
from mcp_server.formats.refs import cached_snapshot, is_hub_id, not_here, resolve_ref, split_revision
from mcp_server.system import paths


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


@pytest.fixture
def two_revisions(tmp_path: Path) -> Path:
    """owner/name in the cache: main, and the tag v2 with other contents."""
    model = tmp_path / "hub" / "models--owner--name"
    (model / "refs" / "pr").mkdir(parents=True)
    for name, commit in (("main", "a" * 40), ("v2", "b" * 40), ("pr/7", "b" * 40)):
        (model / "refs" / name).write_text(commit, encoding="utf-8")
        (model / "snapshots" / commit).mkdir(parents=True, exist_ok=True)
        (model / "snapshots" / commit / "config.json").write_text("{}", encoding="utf-8")
    return model / "snapshots"


@pytest.mark.parametrize("revision", ["v2", "pr/7", "b" * 40])
def test_a_pinned_revision_is_that_snapshot_and_never_another(two_revisions: Path, tmp_path: Path, revision: str) -> None:
    assert resolve_ref("owner/name", tmp_path, revision) == str(two_revisions / ("b" * 40))
    assert locate(f"owner/name@{revision}") == two_revisions / ("b" * 40)
    assert resolve_ref("owner/name", tmp_path, "v3") == "owner/name"
    with pytest.raises(NotFound, match="owner/name@v3"):
        locate("owner/name@v3")


def test_a_revision_does_not_lead_out_of_the_cache(two_revisions: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "config.json").write_text("{}", encoding="utf-8")
    assert (two_revisions / "../../../secret").is_dir()
    for way_out in ("../../../secret", str(tmp_path / "secret")):
        assert cached_snapshot("owner/name", way_out) is None
        with pytest.raises(NotFound):
            locate(f"owner/name@{way_out}")


def test_an_at_sign_in_the_name_of_a_folder_is_part_of_the_name(tmp_path: Path) -> None:
    (tmp_path / "run@3").mkdir()
    assert split_revision(str(tmp_path / "run@3"), tmp_path) == (str(tmp_path / "run@3"), None)
    assert locate(str(tmp_path / "run@3")) == tmp_path / "run@3"


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
    [("a/b", True), ("./a", False), ("/a/b", False), ("gpt2", True), ("a/b/c", False), ("../a", False), ("a b/c", False)]
    + [(odd, False) for odd in ("a/b.git", "a/b-", "a/b.", "-a/b", "a/b--c", "a/b..c", "a/b\n", f"a/{'b' * 97}")],
)
def test_a_hub_id_is_a_name_with_or_without_an_owner(ref: str, hub: bool) -> None:
    assert is_hub_id(ref) is hub


@pytest.mark.parametrize(
    "address",
    [
        "https://hub.example/acme/base",
        "hub.example/acme/base/tree/main",
        "http://127-0-0-1.example:80/acme/base.git",
        "hf://acme/base@v1",
    ],
)
def test_an_address_is_answered_with_the_id_in_it(address: str, tmp_path: Path) -> None:
    said = not_here(address, address, None, tmp_path / "none")
    assert said.next_step == "name the model by its id: acme/base"


@pytest.mark.parametrize("path", ["acme/base/more", "./hub.example/acme", "models/v1.0/base", "my.models/lora/persona"])
def test_a_path_with_nothing_at_its_end_is_no_address(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.models").mkdir()
    assert "check the path" in not_here(path, path, None, tmp_path / "none").next_step
