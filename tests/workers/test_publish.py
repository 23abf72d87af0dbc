"""Publishing to a hub that serves on loopback: the same bytes come back, and nothing of this machine goes along."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from mcp_server.engine.merge import merge
from mcp_server.engine.request import Request
from mcp_server.errors import BadInput, NotAllowed, NotFound
from mcp_server.steps.publish import publication
from tests.engine.synthetic import random_tensors, write_model
from tests.hub import Hub, serving


@pytest.fixture
def merged(tmp_path: Path) -> Path:
    """A merge of a snapshot of the hub cache and a folder of this machine, both under Apache 2.0."""
    base = tmp_path / "hf" / "hub" / "models--acme--base" / "snapshots" / ("0" * 40)
    tensors = random_tensors(0)
    for folder, values in ((base, tensors), (tmp_path / "mine", random_tensors(1, around=tensors))):
        write_model(folder, values)
        (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n", encoding="utf-8")
        (folder / "tokenizer.json").write_text("{}", encoding="utf-8")
    recipe = f"merge_method: linear\nmodels:\n- model: {base}\n  parameters: {{weight: 0.5}}\n- model: {tmp_path}/mine\n"
    recipe += "  parameters: {weight: 0.5}\ndtype: bfloat16\n"
    out = tmp_path / "merged"
    out.mkdir()
    merge(Request(recipe=recipe, folder=out, journal=tmp_path / "journal", seed=0), lambda *_: None)
    found = {"capabilities": {"tools": {"suite": "task_api_tools", "metric": "exact", "n": 24, "merged": 0.9}}}
    (out / "evaluation.json").write_text(
        json.dumps(found | {"models": {"merged": str(out)}, "notes": ["/home/somebody/x"]}), encoding="utf-8"
    )
    (out / "private-notes.txt").write_text("not for anybody", encoding="utf-8")
    return out


def work(kind: str, hub: Hub, folder: Path, parameters: dict[str, Any], **environment: str) -> tuple[int, dict[str, Any], str]:
    """Exit status, result or error, and everything that was printed, of one worker."""
    job = folder / f"job-{kind}"
    job.mkdir(exist_ok=True)
    (job / "request.json").write_text(json.dumps({"kind": kind, "parameters": parameters}), encoding="utf-8")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "MODEL_MERGING"))}
    ours = {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(folder / f"hf-{kind}"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_TOKEN": "hf_" + "a" * 20,
    }
    ended = subprocess.run(
        [sys.executable, "-m", f"mcp_server.workers.{kind}", str(job)],
        env=kept | ours | {"HF_HUB_DISABLE_PROGRESS_BARS": "1"} | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    told = job / ("result.json" if ended.returncode == 0 else "error.json")
    assert told.is_file(), ended.stderr
    return ended.returncode, json.loads(told.read_text(encoding="utf-8")), ended.stdout + ended.stderr


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serving(Hub({})) as running:
        running.faults.token = "hf_" + "a" * 20
        yield running


def test_what_is_published_is_fetched_again_by_its_id_with_the_same_digests(hub: Hub, merged: Path, tmp_path: Path) -> None:
    asked = {"out": str(merged), "repo": "me/merged", "yes": True, "private": True}
    code, found, said = work("publish", hub, tmp_path, asked)
    assert (code, found["licence"], found["base_models"]) == (0, "apache-2.0", ["acme/base"]), said
    code, fetched, said = work("fetch", hub, tmp_path, {"ref": "me/merged"})
    assert code == 0, said
    copy = Path(fetched["folder"])
    for name in ("model.safetensors", "tokenizer.json"):
        digests = [hashlib.sha256((folder / name).read_bytes()).hexdigest() for folder in (merged, copy)]
        assert digests[0] == digests[1], name
    assert set(hub.repositories["me/merged"]) == set(found["files"])
    assert "private-notes.txt" not in found["files"]
    everything = b"\n".join(hub.repositories["me/merged"].values())
    assert str(tmp_path).encode() not in everything
    assert b"/home/somebody" not in everything
    card = hub.repositories["me/merged"]["README.md"].decode()
    front = yaml.safe_load(card.split("---")[1])
    assert (front["base_model"], front["base_model_relation"], front["license"]) == (["acme/base"], "merge", "apache-2.0")
    assert front["model-index"][0]["results"][0]["metrics"][0]["value"] == 0.9


def test_an_upload_that_was_cut_sends_only_what_is_missing(hub: Hub, merged: Path, tmp_path: Path) -> None:
    asked = {"out": str(merged), "repo": "me/merged", "yes": True}
    oid = hashlib.sha256((merged / "model.safetensors").read_bytes()).hexdigest()
    hub.large[oid] = (merged / "model.safetensors").read_bytes()  # sent by an earlier try, in no commit yet
    code, _, said = work("publish", hub, tmp_path, asked)
    assert code == 0, said
    assert f"PUT {oid}" not in hub.requests
    assert hub.repositories["me/merged"]["model.safetensors"] == hub.large[oid]


def test_an_upload_that_stops_midway_goes_on_and_ends_with_the_same_hashes(hub: Hub, merged: Path, tmp_path: Path) -> None:
    shards = _in_shards(merged)
    asked = {"out": str(merged), "repo": "me/merged", "yes": True}
    hub.faults.uploads = 1
    code, _, said = work("publish", hub, tmp_path, asked)
    assert code != 0, said
    assert len(hub.large) == 1
    assert not set(shards) & set(hub.repositories["me/merged"])
    hub.faults.uploads = None
    sent = [line for line in hub.requests if line.startswith("PUT ")]
    code, _, said = work("publish", hub, tmp_path, asked)
    assert code == 0, said
    again = [line for line in hub.requests if line.startswith("PUT ")][len(sent) :]
    assert len(again) == len(shards) - 1
    assert not {line.split()[1] for line in again} & {sent[0].split()[1]}
    for name in shards:
        assert hub.repositories["me/merged"][name] == (merged / name).read_bytes()


def test_a_merge_replaces_an_earlier_one_and_leaves_nothing_of_it_to_be_loaded(hub: Hub, merged: Path, tmp_path: Path) -> None:
    asked = {"out": str(merged), "repo": "me/merged", "yes": True, "private": True}
    code, first, said = work("publish", hub, tmp_path, asked)
    assert (code, first["private"], "me/merged" in hub.private) == (0, True, True), said
    hub.repositories["me/merged"]["picture.png"] = b"of its owner"
    shards = _in_shards(merged)
    code, found, said = work("publish", hub, tmp_path, asked)
    assert code == 0, said
    assert set(hub.repositories["me/merged"]) == {*found["files"], "picture.png"} >= set(shards)
    assert "removed from the earlier merge there: evaluation.json, model.safetensors" in found["notes"]


def test_a_repository_of_something_else_or_a_public_one_gets_nothing(hub: Hub, merged: Path, tmp_path: Path) -> None:
    asked = {"out": str(merged), "repo": "me/merged", "yes": True}
    others = {"me/merged": {"README.md": b"hello", "model.safetensors": b"x"}, "me/public": {"README.md": b"hello"}}
    hub.repositories |= {name: dict(files) for name, files in others.items()}
    code, error, said = work("publish", hub, tmp_path, asked)
    assert (code, "other files than a merge of this tool: model.safetensors" in error["message"]) == (2, True), said
    code, error, said = work("publish", hub, tmp_path, asked | {"repo": "me/public", "private": True})
    assert (code, "is public, and you asked for a private one" in error["message"]) == (2, True), said
    assert (hub.repositories, hub.large) == (others, {})


def test_a_hub_that_ends_with_other_bytes_is_told(hub: Hub, merged: Path, tmp_path: Path) -> None:
    hub.faults.loses = b"other bytes"
    code, error, said = work("publish", hub, tmp_path, {"out": str(merged), "repo": "me/merged", "yes": True})
    assert code == 4, said
    assert "SHA-256" in error["message"]
    assert "model.safetensors" in error["message"]


def _in_shards(merged: Path) -> list[str]:
    """The merge again, in files of 2 kB."""
    recipe = json.loads((merged / "merge_provenance.json").read_text(encoding="utf-8"))["recipe"]
    for file in merged.glob("*.safetensors*"):
        file.unlink()
    journal = merged.with_name("journal-in-shards")
    merge(Request(recipe=recipe, folder=merged, journal=journal, seed=0, shard_bytes=2_000), lambda *_: None)
    (merged / "evaluation.json").unlink(missing_ok=True)
    return sorted(file.name for file in merged.glob("*.safetensors"))


def test_an_upload_that_the_hub_refuses_is_no_bug_of_ours(hub: Hub, merged: Path, tmp_path: Path) -> None:
    hub.faults.refuse_uploads = True
    code, error, said = work("publish", hub, tmp_path, {"out": str(merged), "repo": "me/merged", "yes": True})
    assert (code, error["type"]) == (2, "NotAllowed"), said
    assert error["message"] == "this account may not do that with me/merged"
    assert hub.repositories["me/merged"] == {}


def test_nothing_is_sent_without_a_yes_or_with_a_wrong_token(hub: Hub, merged: Path, tmp_path: Path) -> None:
    code, error, _ = work("publish", hub, tmp_path, {"out": str(merged), "repo": "me/merged"})
    assert (code, error["type"], hub.requests) == (2, "NotAllowed", [])
    wrong = "hf_" + "b" * 20
    code, error, said = work("publish", hub, tmp_path, {"out": str(merged), "repo": "me/merged", "yes": True}, HF_TOKEN=wrong)
    assert (code, error["type"], hub.repositories) == (2, "NotAllowed", {})
    assert wrong not in json.dumps(error) + said


@pytest.mark.parametrize(
    ("licence", "wanted", "words"),
    [
        ("cc-by-nc-nd-4.0", None, "no derivative may be shared"),
        ("", None, "no licence is known for mine"),
        ("mit", None, "the merge needs one licence"),
        ("llama3", "mit", "llama3 passes on to the merge"),
    ],
)
def test_licences_that_leave_none_for_the_merge_stop_it(merged: Path, licence: str, wanted: str | None, words: str) -> None:
    record = merged / "merge_provenance.json"
    data = json.loads(record.read_text(encoding="utf-8"))
    data["sources"][-1]["licence"] = licence or None
    record.write_text(json.dumps(data), encoding="utf-8")
    with pytest.raises(NotAllowed, match=words):
        publication(merged, "me/merged", private=False, licence=wanted)


def test_a_secret_in_a_text_stops_it(merged: Path) -> None:
    with (merged / "mergekit_config.yml").open("a", encoding="utf-8") as file:
        file.write("# hf_abcdefghijklmnopqrstuv\n")
    with pytest.raises(NotAllowed, match="looks like a secret"):
        publication(merged, "me/merged", private=False, licence=None)


def test_only_a_merge_of_ours_under_a_whole_name_is_published(merged: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no merge of this tool"):
        publication(tmp_path / "mine", "me/mine", private=False, licence=None)
    for name in ("merged", "a/b/c", "../x/y", "./merged"):
        with pytest.raises(BadInput, match="not the name of a repository"):
            publication(merged, name, private=False, licence=None)


def test_the_command_shows_what_would_go_and_with_a_yes_publishes_it(hub: Hub, merged: Path, tmp_path: Path) -> None:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "MODEL_MERGING"))}
    ours = {
        "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf-cli"), "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": "hf_" + "a" * 20,
        "MODEL_MERGING_HOME": str(tmp_path / "home"),
    }  # fmt: skip
    command = [sys.executable, "-m", "mcp_server.cli", "publish", str(merged), "me/merged", "--private"]
    refused = subprocess.run(command, env=kept | ours, capture_output=True, text=True, check=False)
    assert (refused.returncode, "nothing was uploaded" in " ".join(refused.stderr.split())) == (2, True), refused.stderr
    assert "me/merged" not in hub.repositories
    done = subprocess.run([*command, "--yes", "--json"], env=kept | ours, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert set(json.loads(done.stdout)["files"]) == set(hub.repositories["me/merged"])


def test_the_code_of_a_source_goes_along_and_other_code_does_not(tmp_path: Path) -> None:
    base, out = tmp_path / "custom", tmp_path / "of-custom"
    write_model(base, random_tensors(0), config={"auto_map": {"AutoConfig": "configuration_own.OwnConfig"}})
    (base / "README.md").write_text("---\nlicense: apache-2.0\n---\n", encoding="utf-8")
    (base / "configuration_own.py").write_text("NAME = 'own'\n", encoding="utf-8")
    recipe = f"merge_method: linear\nmodels:\n- model: {base}\n  parameters: {{weight: 1.0}}\ndtype: bfloat16\n"
    out.mkdir()
    merge(Request(recipe=recipe, folder=out, journal=tmp_path / "journal-custom", seed=0), lambda *_: None)
    (out / "scratch.py").write_text("print('mine')\n", encoding="utf-8")
    found = publication(out, "me/custom", private=True, licence=None)
    assert found.files["configuration_own.py"] == out / "configuration_own.py"
    assert "scratch.py" not in found.files
    said = " ".join(found.notes)
    assert "configuration_own.py): trust_remote_code=True runs it" in said
    assert "not sent: scratch.py" in said
    (out / "configuration_own.py").write_text("NAME = 'edited'\n", encoding="utf-8")
    assert "configuration_own.py" not in publication(out, "me/custom", private=True, licence=None).files
