"""The README's commands for the shell run as they are written, on a tiny language model in the place of the demo's base."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mcp_server.cli import run
from mcp_server.errors import Unsupported
from mcp_server.steps.export import require_converter
from tests.cli.test_documented_commands import ROOT, words
from tests.engine.synthetic import low_rank, write_adapter

pytestmark = pytest.mark.slow
README = (ROOT / "README.md").read_text(encoding="utf-8")
MODULES = {f"model.layers.{i}.self_attn.q_proj": (16, 16) for i in range(2)}
OK = (0,)
MEASURED = (0, 1, 3)
"""A measurement of a model that was never trained ends in a verdict, whatever it is."""
EXPECTED = {"evaluate": MEASURED}


def block_with(text: str) -> list[list[str]]:
    """The commands of the fenced block that holds `text`, as the shell would hand them on."""
    (block,) = [part.partition("\n")[2] for part in README.split("```")[1::2] if text in part]
    return [words(line) for line in block.splitlines() if line.startswith("model-merging ")]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """base/, which reads characters, and two adapters of it."""
    folder = tmp_path_factory.mktemp("tiny")
    maker = ROOT / "tests" / "workers" / "tiny_language_model.py"
    subprocess.run([sys.executable, str(maker), str(folder)], check=True, capture_output=True)
    for seed, name in enumerate(("persona", "tools"), 1):
        factors = {key: 0.3 * value for key, value in low_rank(seed, MODULES, 2).items()}
        write_adapter(folder / name, factors, base_model_name_or_path=str(folder / "base"))
    for name in ("base", "persona", "tools"):
        (folder / name / "README.md").write_text("---\nlicense: apache-2.0\n---\n", encoding="utf-8")
    return folder


def walk(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Run a command and hold its exit status against what the README promises."""
    exports = arguments[0] == "export" or "--gguf" in arguments
    if exports and not lacks_converter():
        return  # tests/workers/test_export.py exports; this model's tokenizer has no GGUF form
    code = run(arguments)
    said = capsys.readouterr()
    told = said.out + said.err
    if arguments[0] == "export":
        assert (code, "model-merging[gguf]" in told) == (2, True), told[-800:]
    elif exports:
        assert (code, "does not exist" in told) == (2, True), told[-800:]
    elif arguments[0] == "publish" and "--yes" not in arguments:
        assert (code, "nothing was uploaded" in told) == (2, True), told[-800:]
    else:
        assert code in EXPECTED.get(arguments[0], OK), (arguments, told[-1500:])


def lacks_converter() -> bool:
    try:
        require_converter()
    except Unsupported:
        return True
    return False


def test_the_block_from_the_shell_runs_as_written(
    models: Path, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(models / "base", store / "cache" / "base" / "smollm2-135m-instruct")
    for name in ("persona", "tools"):
        shutil.copytree(models / name, tmp_path / name)
    shutil.copy(ROOT / "examples" / "taskmaster" / "scenario.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    lines = block_with("cd examples/taskmaster")
    assert len(lines) >= 13
    for arguments in lines:
        walk(arguments, capsys)
    walk(words("model-merging evaluations ./merged"), capsys)
    assert (tmp_path / "report.html").is_file()
