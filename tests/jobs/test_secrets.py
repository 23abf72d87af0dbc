"""Secrets stay where they are: not in logs, events, errors, job files, provenance or model cards; no network when it is off."""

import socket
import time

import pytest

from mcp_server import jobs
from mcp_server.errors import NotFound
from mcp_server.schemas.job import MergeRequest
from mcp_server.system.policy import Policy
from tests import tiny
from tests.fake_worker import FAKE, scripted

TOKEN, PASSWORD = "hf_" + "Abc123xyz" * 4, "correct horse battery staple"


@pytest.fixture
def secrets(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("MODEL_MERGING_DATABASE_PASSWORD", PASSWORD)


def tellers(*folders) -> list[str]:
    """Files below these folders that hold one of the secrets."""
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    assert files
    return [str(f) for f in files if any(word.encode() in f.read_bytes() for word in (TOKEN, PASSWORD))]


@pytest.mark.parametrize("name", ["HF_TOKEN", "MODEL_MERGING_DATABASE_PASSWORD"])
def test_a_worker_that_tells_a_secret_in_every_way_it_can_is_not_written_down(name, secrets, store):
    """It may fetch a hub id, so it has the token. (A variable of ours is passed on whatever it is called.)"""
    request = scripted(base="owner/name", script=[{"do": "leak", "name": name}])
    ended = jobs.wait(jobs.start(request, worker=FAKE, policy=Policy()).job_id, 30)
    assert ended.error["message"] == "the error: [secret]"
    assert (ended.error["next_step"], ended.error["details"]) == ("the next step: [secret]", {"detail": {"deep": ["[secret]"]}})
    assert ended.progress.message == "the progress: [secret]"
    assert "the log: [secret]" in jobs.logs(ended.job_id).text
    assert tellers(store) == []


@pytest.mark.slow
def test_a_real_merge_writes_no_secret_anywhere(secrets, store, tmp_path):
    models = [tiny.write_model(tmp_path / name, seed) for seed, name in enumerate(("a", "b"))]
    request = MergeRequest(recipe=tiny.linear_recipe(*models), out=str(tmp_path / "out"), engine="stream")
    assert jobs.wait(jobs.start_merge(request).job_id, 120).state == "succeeded"
    assert tellers(store, tmp_path / "out") == []


def test_offline_refuses_a_hub_id_at_once_and_without_asking_the_network(store, tmp_path, monkeypatch):
    def refuse(*_):
        raise AssertionError("the network was asked")

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    began = time.process_time()
    request = MergeRequest(recipe=tiny.linear_recipe("owner/name"), out=str(tmp_path / "out"))
    with pytest.raises(NotFound, match="owner/name is not in the local cache, and the network is switched off"):
        jobs.start_merge(request, policy=Policy(offline=True))
    assert time.process_time() - began < 1
