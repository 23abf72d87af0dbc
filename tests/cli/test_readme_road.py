"""The README's commands run as they are written, on a tiny language model and a hub on loopback.

In small, on weights that no program loads, in the quick tests; whole, with replies, scores and exports, in the slow ones.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mcp_server.cli import run
from mcp_server.errors import Unsupported
from mcp_server.formats.refs import cached_snapshot
from mcp_server.steps.export import require_converter
from tests.cli.test_documented_commands import ROOT, words
from tests.engine.synthetic import low_rank, random_tensors, write_adapter, write_model
from tests.hub import COMMIT, Hub, serving
from tests.workers.tiny_language_model import TEMPLATE

README = (ROOT / "README.md").read_text(encoding="utf-8")
OK = (0,)
MEASURED = (0, 1, 3)
"""A measurement of a model that was never trained ends in a verdict, whatever it is."""
EXPECTED = {"evaluate": MEASURED, "go": MEASURED}
TOKEN = "hf_" + "a" * 20
APACHE = "---\nlicense: apache-2.0\n---\n"


def block_with(text: str) -> list[list[str]]:
    """The commands of the fenced block that holds `text`, as the shell would hand them on."""
    (block,) = [part.partition("\n")[2] for part in README.split("```")[1::2] if text in part]
    return [words(line) for line in block.splitlines() if line.startswith("model-merging ")]


def lacks_converter() -> bool:
    try:
        require_converter()
    except Unsupported:
        return True
    return False


def walk(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Run a command, hold its exit status against what the README promises, and hand back what it printed."""
    code = run(arguments)
    said = capsys.readouterr()
    told = said.out + said.err
    if arguments[0] == "export" and lacks_converter():
        assert (code, "model-merging[gguf]" in told) == (2, True), told[-800:]
    elif "--gguf" in arguments and lacks_converter():
        assert (code, "does not exist" in told) == (2, True), told[-800:]
    elif arguments[0] == "publish" and "--yes" not in arguments:
        assert (code, "nothing was uploaded" in told) == (2, True), told[-800:]
    else:
        assert code in EXPECTED.get(arguments[0], OK), (arguments, told[-1500:])
    return said.out


class Person(io.StringIO):
    """A terminal at which somebody says yes."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def hub(tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    for name in ("HF_HUB_CACHE", "HF_HUB_OFFLINE", "MODEL_MERGING_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"HF_HOME": str(tmp_path / "hf"), "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1"}.items():
        monkeypatch.setenv(name, value)
    with serving(Hub({})) as running:
        running.faults.token = TOKEN
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        yield running


def digest(folder: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(folder.glob("*.safetensors"))}


def test_the_road_by_the_hub_in_small(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Fetched by id, merged, verified, published, and fetched by that id with the same hashes."""
    made = tmp_path / "made"
    write_model(made / "base", random_tensors(0), "float32", shards=2)
    for seed, folder in enumerate((made / "persona-lora", tmp_path / "tools"), 1):
        write_adapter(folder, low_rank(seed, {"model.layers.1.mlp.up_proj": (16, 12)}, 2), base_model_name_or_path="you/base")
    for folder in (made / "base", made / "persona-lora", tmp_path / "tools"):
        (folder / "README.md").write_text(APACHE, encoding="utf-8")
    for name in ("base", "persona-lora"):
        hub.add(f"you/{name}", made / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin", Person("y\n"))
    by_name = {line[0]: line for line in block_with("you/persona-lora")}
    assert list(by_name) == ["fetch", "go", "show", "export", "publish"]
    walk(by_name["fetch"], capsys)
    said = walk([*by_name["go"], "--suite", "none"], capsys)  # these weights speak no language that could be measured
    assert "verified" in said
    record = json.loads((tmp_path / "merged" / "merge_provenance.json").read_text(encoding="utf-8"))
    revisions = {source["name"]: source["revision"] for source in record["sources"]}
    assert revisions == {"base": COMMIT, "persona-lora": COMMIT, "tools": None}
    walk(by_name["publish"], capsys)
    walk(["fetch", "you/merged"], capsys)
    fetched = cached_snapshot("you/merged")
    assert fetched is not None
    assert digest(fetched) == digest(tmp_path / "merged") != {}
    assert str(tmp_path).encode() not in b"".join(hub.repositories["you/merged"].values())


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """base/, whose tokenizer has a GGUF form, and two adapters of it."""
    folder = tmp_path_factory.mktemp("tiny")
    maker = ROOT / "tests" / "workers" / "tiny_llama_export.py"
    subprocess.run([sys.executable, str(maker), str(folder)], check=True, capture_output=True)
    config = folder / "base" / "config.json"
    long = json.loads(config.read_text(encoding="utf-8")) | {"max_position_embeddings": 4096}
    config.write_text(json.dumps(long), encoding="utf-8")
    (folder / "base" / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    for seed, name in enumerate(("persona", "tools"), 1):
        modules = {f"model.layers.{i}.self_attn.q_proj": (64, 64) for i in range(2)}
        factors = {key: 0.3 * value for key, value in low_rank(seed, modules, 2).items()}
        write_adapter(folder / name, factors, base_model_name_or_path=str(folder / "base"))
    for name in ("base", "persona", "tools"):
        (folder / name / "README.md").write_text(APACHE, encoding="utf-8")
    return folder


def with_base(folder: Path, base: str) -> None:
    config = folder / "adapter_config.json"
    named = json.loads(config.read_text(encoding="utf-8")) | {"base_model_name_or_path": base}
    config.write_text(json.dumps(named), encoding="utf-8")


def scores(folder: Path) -> dict[str, Any]:
    found = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))["capabilities"]
    return {name: (one["n"], one["merged"]) for name, one in found.items()}


@pytest.mark.slow
def test_the_road_by_the_hub_as_written(
    models: Path, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("base", "persona", "tools"):
        shutil.copytree(models / name, tmp_path / "made" / name)
    for name in ("persona", "tools"):
        with_base(tmp_path / "made" / name, "you/base")
    shutil.copytree(tmp_path / "made" / "tools", tmp_path / "tools")
    hub.add("you/base", tmp_path / "made" / "base")
    hub.add("you/persona-lora", tmp_path / "made" / "persona")
    monkeypatch.chdir(tmp_path)
    for arguments in block_with("you/persona-lora"):
        monkeypatch.setattr("sys.stdin", Person("y\n"))
        walk(arguments, capsys)
    walk(["fetch", "you/merged"], capsys)
    fetched = cached_snapshot("you/merged")
    assert fetched is not None
    assert digest(fetched) == digest(tmp_path / "merged") != {}
    suites = [word for suite in ("perplexity", "task_api_tools") for word in ("--suite", suite)]
    copy = tmp_path / "copy"
    shutil.copytree(fetched, copy)
    found = {}
    for folder in (tmp_path / "merged", copy):
        walk(["evaluate", str(folder), *suites, "--quick", "--against", "tools=./tools"], capsys)  # it was never on the hub
        found[folder.name] = scores(folder)
    assert found["copy"] == found["merged"]
    if not lacks_converter():
        assert (tmp_path / "chat" / "Modelfile").is_file()
        walk(["evaluate", "merged", "--gguf", "chat", "--suite", "task_api_tools", "--quick"], capsys)


@pytest.mark.slow
def test_the_block_from_the_shell_runs_as_written(
    models: Path, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(models / "base", store / "cache" / "base" / "smollm2-135m-instruct")
    for name in ("persona", "tools"):
        shutil.copytree(models / name, tmp_path / name)
    shutil.copy(ROOT / "examples" / "one_prompt" / "scenario.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    lines = block_with("cd examples/one_prompt")
    assert len(lines) >= 13
    for arguments in lines:
        walk(arguments, capsys)
    walk(words("model-merging evaluations ./merged"), capsys)
    assert (tmp_path / "report.html").is_file()
