"""Which paths may be touched, and what the operator's settings say."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcp_server.errors import BadInput, MergingError, NotAllowed
from mcp_server.system import policy, settings
from mcp_server.system.policy import Policy
from mcp_server.system.settings import Settings


@pytest.fixture
def fenced(tmp_path):
    """(policy with one root, the root, a folder outside it)."""
    root, outside = tmp_path / "root", tmp_path / "outside"
    root.mkdir()
    outside.mkdir()
    return Policy(roots=(root,)), root, outside


def test_what_lies_under_a_root_is_allowed_whether_it_exists_or_not(fenced):
    rules, root, _ = fenced
    assert rules.check_read(root / "a" / ".." / "b") == root / "b"
    assert rules.check_write(root) == root


@pytest.mark.parametrize("path", ["outside", "root/../outside", "rootling", "root/link/x", "root/../../etc/passwd", "/"])
def test_what_leads_outside_is_refused_by_every_route(path, fenced, tmp_path):
    rules, root, outside = fenced
    (root / "link").symlink_to(outside)
    with pytest.raises(NotAllowed, match="outside"):
        rules.check_read(tmp_path / path if path != "/" else path)
    with pytest.raises(NotAllowed):
        rules.check_write(tmp_path / path if path != "/" else path)


def test_an_output_that_is_a_link_is_refused_even_inside_the_root(fenced):
    rules, root, _ = fenced
    (root / "real").mkdir()
    (root / "link").symlink_to(root / "real")
    with pytest.raises(NotAllowed, match="symbolic link"):
        rules.check_write(root / "link")
    assert rules.check_read(root / "link") == root / "real"


def test_devices_pipes_and_sockets_are_no_models(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in ("/dev/zero", tmp_path / "pipe"):
        with pytest.raises(NotAllowed, match="not a file or folder"):
            Policy().check_read(path)


def test_a_models_own_files_may_not_lead_outside_or_be_anything_but_files(fenced):
    """A cloned model whose tokenizer is a link to somebody's keys would carry them into the output."""
    rules, root, outside = fenced
    (outside / "id_rsa").touch()
    (root / "model").mkdir()
    (root / "blobs").mkdir()
    (root / "blobs" / "1").touch()
    (root / "model" / "config.json").symlink_to(root / "blobs" / "1")
    assert rules.check_read(root / "model") == root / "model"
    (root / "model" / "tokenizer.json").symlink_to(outside / "id_rsa")
    with pytest.raises(NotAllowed, match=r"tokenizer\.json .*outside"):
        rules.check_read(root / "model")
    assert Policy().check_read(root / "model") == root / "model"
    (root / "model" / "tokenizer.json").unlink()
    os.mkfifo(root / "model" / "model.safetensors")
    for policy_of in (rules, Policy()):
        with pytest.raises(NotAllowed, match=r"model\.safetensors .*a pipe"):
            policy_of.check_read(root / "model")
    (root / "model" / "model.safetensors").unlink()
    (root / "model" / "config.json").unlink()
    (root / "model" / "config.json").symlink_to("/dev/zero")
    with pytest.raises(NotAllowed, match="a character device"):
        Policy().check_read(root / "model")


@pytest.mark.parametrize("path", ["", "a\nb", "a\x00b", "\x1b[2J"])
def test_control_characters_in_a_path_are_refused(path):
    with pytest.raises(BadInput, match="control characters"):
        Policy().check_read(path)


@pytest.mark.parametrize("path", ["~nobody-of-this-name/x", "~0", "\ud800", "x" * 5_000, "/".join(["y" * 300] * 20)])
def test_what_cannot_be_a_path_is_refused_in_our_words_or_leads_nowhere(path, fenced):
    for check in (fenced[0].check_read, fenced[0].check_write):
        with pytest.raises((BadInput, NotAllowed)):
            check(path)


@given(st.text(max_size=60))
def test_no_text_gets_out_of_the_root(text):
    rules = Policy(roots=(Path("/srv/models"),))
    try:
        found = rules.check_read(text)
    except MergingError:
        return
    assert found.is_relative_to("/srv/models")


def test_a_person_is_unrestricted_unless_the_operator_says_otherwise():
    assert policy.for_person(Settings()).roots is None
    assert policy.for_person(Settings(roots=["/srv"])).roots == (Path("/srv"),)


def test_an_agent_gets_the_working_folder_the_store_and_the_hub_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("MODEL_MERGING_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    assert policy.for_agent(Settings(), tmp_path / "work").roots == (tmp_path / "work", tmp_path / "home", tmp_path / "hub")


def test_settings_come_from_the_file_and_the_environment_wins(monkeypatch, tmp_path):
    monkeypatch.setenv("MODEL_MERGING_HOME", str(tmp_path))
    (tmp_path / "settings.toml").write_text('max_running = 3\noffline = true\nroots = ["/a", "/b"]\n', encoding="utf-8")
    found = settings.load()
    assert (found.max_running, found.offline, found.roots) == (3, True, [Path("/a"), Path("/b")])
    monkeypatch.setenv("MODEL_MERGING_MAX_RUNNING", "2")
    monkeypatch.setenv("MODEL_MERGING_ROOTS", f"/c{os.pathsep}/d")
    found = settings.load()
    assert (found.max_running, found.roots) == (2, [Path("/c"), Path("/d")])


@pytest.mark.parametrize(
    ("text", "words"),
    [("max_running = 0", "max_running"), ("max_runing = 2", "max_runing"), ("= 3", "not TOML"), ("ram_gib = -1", "ram_gib")],
)
def test_a_setting_that_cannot_be_used_is_named(text, words, monkeypatch, tmp_path):
    monkeypatch.setenv("MODEL_MERGING_HOME", str(tmp_path))
    (tmp_path / "settings.toml").write_text(text, encoding="utf-8")
    with pytest.raises(BadInput, match=words):
        settings.load()


def test_remote_code_is_off_and_offline_follows_the_hubs_own_variable(monkeypatch, tmp_path):
    monkeypatch.setenv("MODEL_MERGING_HOME", str(tmp_path))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    assert (settings.load().trust_remote_code, settings.load().is_offline) == (False, False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert settings.load().is_offline is True
