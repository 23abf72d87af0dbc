"""Every code of the linter catches what it is documented to catch, and nothing else is said about that recipe."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from mcp_server.schemas.validation import Finding
from mcp_server.steps.validate import CHECKS, rules, validate
from tests.checkpoints import cache_model, write_lora, write_model

CASES: list[dict[str, Any]] = yaml.safe_load((Path(__file__).parent / "recipes" / "bad.yaml").read_text(encoding="utf-8"))
TOKENS = ["<s>", "</s>", *(f"t{n}" for n in range(14))]
ELSEWHERE = {"MM116", "MM501", "MM502", "MM503", "MM504", "MM505", "MM701"}
"""Tested with an output, a budget or a planner in test_validate_resources.py and test_fp8_output.py, sizes in
test_validate_bounds.py."""
READER = {"MM101", "MM105", "MM106", "MM108", "MM109", "MM112", "MM116", "MM117", "MM701"}
"""Reported by the reader or the planner rather than by a check."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A Hugging Face cache and a working folder with the models that the table names."""
    cache, here = tmp_path_factory.mktemp("hub"), tmp_path_factory.mktemp("here")
    models: dict[str, dict[str, Any]] = {
        "base": {}, "tuned-a": {}, "tuned-b": {}, "wide": {"hidden": 16}, "long": {"layers": 6}, "words": {"vocabulary": 20},
        "untied": {"tied": True}, "half": {"dtype": "F16"}, "partial": {"drop": ("model.layers.1.mlp.up_proj.weight",)},
        "rotated": {"rope_theta": 500000.0}, "padded": {"vocabulary": 64}, "padded-too": {"vocabulary": 64},
        "headless": {"drop": ("lm_head.weight",)},
        "eyes": {"add": {"model.visual.blocks.0.qkv.weight": [8, 8]}},
    }  # fmt: skip
    for name, shape in models.items():
        tokens = [*TOKENS, *(f"x{n}" for n in range(4))] if name == "words" else TOKENS
        cache_model(cache, f"org/{name}", **({"layers": 4, "tokens": tokens} | shape))
    cache_model(cache, "org/eyes-tuned", layers=4, tokens=TOKENS, **models["eyes"])
    awq = cache_model(cache, "org/awq", layers=4, tokens=TOKENS, quantization_config={"quant_method": "awq", "version": "gemm"})
    stem, tensors = "model.layers.1.mlp.up_proj", load_file(awq / "model.safetensors")
    packed = {"qweight": torch.zeros((8, 2)).int(), "qzeros": torch.zeros((1, 2)).int(), "scales": torch.ones((1, 16)).half()}
    del tensors[f"{stem}.weight"]
    save_file(tensors | {f"{stem}.{part}": values for part, values in packed.items()}, awq / "model.safetensors")
    sides = {f"{side}.layers.{n}.fc1.weight": [8, 8] for side in ("encoder", "decoder") for n in range(2)}
    for name in ("org/seq2seq", "org/seq2seq-tuned"):
        cache_model(cache, name, layers=0, tokens=TOKENS, add=sides, architecture="BartForConditionalGeneration")
    cache_model(cache, "org/other-words", layers=4, tokens=[*TOKENS[:8], *(f"o{n}" for n in range(8))])
    cache_model(cache, "org/too-many-words", layers=4, tokens=[*TOKENS, *(f"x{n}" for n in range(4))])
    write_lora(here / "lora", "org/base", layers=4)
    write_lora(here / "lora-of-wide", "org/base", layers=4, hidden=16)
    write_lora(here / "oft", "org/base", layers=4, peft_type="OFT")
    write_lora(here / "prefixless", "org/base", layers=4, prefix="")
    write_model(here / "quantised", layers=4, dtype="U8", quantization_config={"quant_method": "hqq"})
    write_model(here / "here" / "model", layers=4, tokens=TOKENS)
    for name, file in (("pickle", "pytorch_model.bin"), ("gguf", "model.gguf"), ("empty", "notes.txt")):
        (here / name).mkdir()
        (here / name / file).write_bytes(b"\x80")
    broken = write_model(here / "broken", layers=4) / "model.safetensors"
    broken.write_bytes(broken.read_bytes()[:-5])
    two = write_model(here / "two-sets", layers=4, tokens=TOKENS, shards=2)
    write_model(two, layers=4, tokens=TOKENS)
    return cache, here


def found_in(case: dict[str, Any], place: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> list[Finding]:
    monkeypatch.setenv("HF_HUB_CACHE", str(place[0]))
    return validate(case["recipe"], folder=place[1]).findings


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['code']} {case['name']}")
def test_the_fault_is_named_in_its_place(case: dict[str, Any], place: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    findings = found_in(case, place, monkeypatch)
    mine = [f for f in findings if f.code == case["code"]]
    assert mine, [(f.code, f.message) for f in findings]
    assert mine[0].severity == rules()[case["code"]].severity
    assert case.get("where", "") in mine[0].where
    assert any(case.get("says", "") in f"{f.message} {f.fix}" for f in mine), [(f.message, f.fix) for f in mine]
    if case.get("only", True):
        assert {f.code for f in findings if f.severity != "note"} <= {case["code"]}, [(f.code, f.message) for f in findings]


def test_every_code_has_a_case() -> None:
    assert set(rules()) - {case["code"] for case in CASES} == ELSEWHERE


def test_every_code_is_decided_by_exactly_one_check_or_the_reader() -> None:
    assert set(rules()) == set(CHECKS) | READER
    assert set(CHECKS) & READER == set()


def test_ok_means_no_error(place: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(place[0]))
    for case in CASES:
        found = validate(case["recipe"], folder=place[1])
        assert found.ok is all(f.severity != "error" for f in found.findings), json.dumps(case["name"])
