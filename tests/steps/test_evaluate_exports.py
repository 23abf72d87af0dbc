"""Which GGUF may be measured, and as what: refused before a job exists where it cannot be run or is no export of the merge."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest

from mcp_server import jobs
from mcp_server.errors import BadInput, Incompatible, MergingError, NotAModel, NotFound, Unsupported
from mcp_server.schemas.job import EvaluateRequest
from mcp_server.steps.evaluate import exports
from mcp_server.steps.evaluate.exports import exports_of
from mcp_server.steps.evaluate.line_up import require_measurable
from tests import tiny
from tests.fake_worker import FAKE


def write_gguf(file: Path, *, architecture: str = "llama", kind: str = "model", rows: int = 16, **changed: int) -> Path:
    """The header of an export of `tiny.write_model`, with what is changed in it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(str(file), architecture)
    writer.add_type(kind)
    told = {"block_count": 1, "embedding_length": 8, "feed_forward_length": 16, "head_count": 2, "head_count_kv": 2} | changed
    for key in ("block_count", "embedding_length", "feed_forward_length", "head_count", "head_count_kv", "file_type"):
        if key in told:
            getattr(writer, f"add_{key}")(told[key])
    writer.add_tensor("token_embd.weight", np.zeros((rows, 8), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


@pytest.fixture
def merge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(exports, "find_spec", lambda _: object())
    monkeypatch.setenv("MODEL_MERGING_HOME", str(tmp_path / "home"))
    prompts = [{"prompt": "one", "expected": "two"}, {"prompt": "2+2", "choices": ["3", "4"], "expected": "4", "match": "choice"}]
    for name, lines in {"replies.jsonl": prompts[:1], "choices.jsonl": prompts[1:]}.items():
        (tmp_path / name).write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return tiny.write_model(tmp_path / "merge")


def asked(merge: Path, *files: Path, data: str = "replies.jsonl", **more: object) -> EvaluateRequest:
    fields = {"out": str(merge), "data": [str(merge.parent / data)], "gguf": [str(file) for file in files]}
    return EvaluateRequest.model_validate(fields | more)


def test_an_export_is_called_by_its_quantisation_and_measured_last(merge: Path, tmp_path: Path) -> None:
    small = write_gguf(tmp_path / "x" / "merge-Q4_K_M.gguf", file_type=15)
    other = write_gguf(tmp_path / "y" / "again.gguf", file_type=15)
    refs, _ = require_measurable(asked(merge, small.parent, other))
    assert refs == {"merged": str(merge), "Q4_K_M": str(small), "again": str(other)}


def test_a_gguf_alone_is_the_model_that_is_measured(merge: Path, tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "x" / "m.gguf")
    for out in (file, file.parent):
        refs, _ = require_measurable(asked(merge, out=str(out)))
        assert refs == {"merged": str(file)}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"block_count": 2}, r"block_count 2, the config\.json of merged says 1"),
        ({"embedding_length": 16}, "embedding_length 16"),
        ({"head_count": 4}, r"head_count 4"),
        ({"rows": 17}, "rows for 17 tokens"),
        ({"architecture": "qwen2"}, "architecture 'qwen2'"),
    ],
)
def test_a_gguf_of_another_model_is_refused(changed: dict[str, int], said: str, merge: Path, tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "other.gguf", **changed)
    with pytest.raises(Incompatible, match=said):
        jobs.start(asked(merge, file), worker=FAKE)
    with pytest.raises(Incompatible):
        jobs.start(asked(merge, out=str(file), against={"base": str(merge)}), worker=FAKE)
    assert jobs.list_jobs().total == 0


def test_of_an_architecture_that_is_not_read_here_layers_may_be_counted_otherwise(merge: Path, tmp_path: Path) -> None:
    require_measurable(asked(merge, write_gguf(tmp_path / "m.gguf", architecture="deepseek2", block_count=2, head_count_kv=1)))


@pytest.mark.parametrize(
    ("make", "error", "said"),
    [
        (lambda folder: folder / "none.gguf", NotFound, "does not exist"),
        (lambda folder: folder, NotAModel, "no GGUF file and no folder that holds one"),
        (lambda folder: folder / "replies.jsonl", NotAModel, "no GGUF file"),
        (lambda folder: write_gguf(folder / "lora.gguf", kind="adapter"), NotAModel, "holds no model but 'adapter'"),
        (lambda folder: write_gguf(folder / "merged.gguf"), BadInput, "would be called 'merged'"),
    ],
)
def test_what_is_no_export_is_refused(
    make: Callable[[Path], Path], error: type[MergingError], said: str, merge: Path, tmp_path: Path
) -> None:
    with pytest.raises(error, match=said):
        jobs.start(asked(merge, make(tmp_path)), worker=FAKE)
    assert jobs.list_jobs().total == 0


def test_a_file_that_is_no_gguf_inside_is_refused_also_alone(merge: Path, tmp_path: Path) -> None:
    for content in (b"", b"GGUF", b"GGUF" + b"\xff" * 64):
        (tmp_path / "broken.gguf").write_bytes(content)
        with pytest.raises(BadInput, match=r"broken\.gguf"):
            jobs.start(asked(merge, out=str(tmp_path / "broken.gguf")), worker=FAKE)
    assert jobs.list_jobs().total == 0


def test_an_export_that_is_named_twice_is_refused(tmp_path: Path) -> None:
    file = str(write_gguf(tmp_path / "m.gguf"))
    with pytest.raises(BadInput, match="named twice"):
        exports_of([file, file], [])


def test_a_suite_that_compares_likelihoods_leaves_exports_out_and_alone_is_refused(merge: Path, tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "m.gguf")
    require_measurable(asked(merge, file, suites=["perplexity"]))
    for refused in (asked(merge, file, data="choices.jsonl"), asked(merge, out=str(file), suites=["perplexity"])):
        with pytest.raises(Unsupported, match="no likelihoods of a prompt"):
            require_measurable(refused)


def test_without_the_extra_it_says_what_to_install(merge: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exports, "find_spec", lambda _: None)
    file = write_gguf(tmp_path / "m.gguf")
    with pytest.raises(Unsupported, match="xllamacpp") as refused:
        require_measurable(asked(merge, file))
    assert "model-merging[gguf]" in refused.value.next_step
    require_measurable(asked(merge))


def test_beside_an_endpoint_no_gguf_is_measured(merge: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="one after the other"):
        require_measurable(asked(merge, write_gguf(tmp_path / "m.gguf"), endpoint="http://127.0.0.1:9/v1"))
