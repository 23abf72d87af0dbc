"""Nothing outside the roots is opened, however it is named: every file that Python opens during a call is looked at."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mcp_server import cli
from mcp_server.engine.reader import Reader
from mcp_server.errors import MergingError, NotAllowed
from mcp_server.formats.identity import tokenizer_hash
from mcp_server.formats.licence import read_licence
from mcp_server.formats.safetensors import read_header
from mcp_server.formats.source import inspect_source
from mcp_server.formats.tensors import read_json
from mcp_server.steps.report import write_report
from mcp_server.system import guard
from mcp_server.system.policy import Policy
from tests import tiny

opened: list[str] = []
recording = [False]
sys.addaudithook(lambda event, found: opened.append(str(found[0])) if event == "open" and recording[0] else None)


@pytest.fixture
def place(store, tmp_path):
    """A root with a model of its own, and beside it a secret that links, records and configs inside lead to."""
    root, secret = tmp_path / "root", tiny.write_tokenizer(tiny.write_model(tmp_path / "outside" / "secret"))
    (secret / "README.md").write_text("---\nlicense: mit\n---\n", encoding="utf-8")
    tiny.write_model(root / "mine")
    (root / "link").symlink_to(secret)
    (root / "inner").mkdir()
    (root / "inner" / "config.json").symlink_to(secret / "config.json")
    (root / "inner" / "model.safetensors").symlink_to(secret / "model.safetensors")
    return root, secret


SPELLINGS = (
    "{s}",
    "{s}@main",
    "{r}/link",
    "{r}/link@main",
    "{r}/mine/../../outside/secret",
    "{r}/mine+{s}",
    "{r}/inner",
    "/proc/self/root{s}",
)


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_no_spelling_of_a_model_opens_what_lies_outside(spelling, place):
    root, secret = place
    opened.clear()
    recording[0] = True
    try:
        with guard.enforced(Policy(roots=(root,))), pytest.raises(MergingError):
            inspect_source(spelling.format(r=root, s=secret), root)
    finally:
        recording[0] = False
    assert [name for name in opened if Path(name).resolve().is_relative_to(secret)] == []


def test_a_file_that_no_check_has_met_is_refused_when_it_is_opened(place):
    root, secret = place
    with guard.enforced(Policy(roots=(root,))):
        assert (root / "mine" / "config.json").read_bytes()
        for path in (secret / "config.json", root / "link" / "config.json", root / "inner" / "config.json"):
            with pytest.raises(MergingError, match="may not open"):
                path.read_bytes()
    assert (secret / "config.json").read_bytes()


def test_a_link_that_is_swapped_after_the_check_is_refused_by_what_was_opened(place, monkeypatch):
    """Each check before the opening is told that the path is still inside."""
    root, secret = place
    target = root / "swapped"
    target.symlink_to(secret)
    with guard.enforced(Policy(roots=(root,))), monkeypatch.context() as patched:
        patched.setattr(os.path, "realpath", lambda _, **__: str(root / "mine"))
        for read in (
            lambda: guard.open_read(target / "config.json"),
            lambda: read_json(target / "config.json"),
            lambda: read_header(target / "model.safetensors"),
            lambda: tokenizer_hash(target),
            lambda: read_licence(target),
            lambda: Reader()._file(target / "model.safetensors"),
        ):
            with pytest.raises(NotAllowed, match="may not open"):
                read()
    with guard.enforced(Policy(roots=(root,))), guard.open_read(root / "mine" / "config.json") as stream:
        assert stream.read()


def test_a_records_sources_outside_are_not_read_for_a_report(place):
    root, secret = place
    recipe = tiny.linear_recipe(secret).replace("\n", "\\n")
    record = tiny.MERGE["merge_provenance.json"].replace('"recipe": ""', f'"recipe": "{recipe}"')
    (root / "mine" / "merge_provenance.json").write_text(record, encoding="utf-8")
    opened.clear()
    with guard.enforced(Policy(roots=(root,))):
        recording[0] = True
        try:
            write_report(root / "mine")
        finally:
            recording[0] = False
    assert [name for name in opened if Path(name).resolve().is_relative_to(secret)] == []


def test_a_person_looks_where_they_may_and_their_jobs_are_held_to_the_roots(place, monkeypatch, capsys):
    """The base that an adapter's config names lies outside: read by who looks, refused for what a job would read or write."""
    root, secret = place
    adapter = tiny.write_adapter(root / "adapter", secret)
    monkeypatch.chdir(root)
    monkeypatch.setenv("MODEL_MERGING_ROOTS", str(root))
    assert cli.run(["inspect", str(adapter)]) == 0
    models = f"- model: {secret}+{adapter}\n  parameters: {{weight: 1.0}}\n"
    recipe = f"merge_method: task_arithmetic\nbase_model: {secret}\nmodels:\n{models}dtype: bfloat16\n"
    (root / "recipe.yml").write_text(recipe, encoding="utf-8")
    assert cli.run(["merge", "recipe.yml", "out", "--output", "adapter"]) == 2
    assert cli.run(["report", str(secret), "-o", str(secret / "report.html")]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert f"may not read {secret}: it is outside {root}" in said
    assert f"may not write {secret / 'report.html'}: it is outside {root}" in said
    assert not (root / "out").exists()


def test_a_worker_opens_no_base_outside_the_roots_of_its_job(place, tmp_path):
    """Whatever its request says: here a record of a merge names it, which nobody checked."""
    root, secret = place
    folder = tmp_path / "job"
    folder.mkdir()
    request = {
        "kind": "verify",
        "parameters": {"out": str(root / "mine"), "base": str(secret), "load": False},
        "roots": [str(root)],
    }
    (folder / "request.json").write_text(json.dumps(request), encoding="utf-8")
    ended = subprocess.run([sys.executable, "-m", "mcp_server.workers.verify", str(folder)], capture_output=True, check=False)
    told = (folder / "error.json" if ended.returncode else folder / "result.json").read_text(encoding="utf-8")
    assert "hidden_size" not in told
    assert f"may not read {secret}" in told or f"may not open {secret}" in told, told
