"""Comparing sources: each difference is named with its values and what it means for merging."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mcp_server.steps.inspect import inspect_models
from tests.checkpoints import write_lora, write_model, write_tokenizer

TOKENS = [f"t{n}" for n in range(16)]


def pair(tmp_path: Path, first: dict[str, Any], second: dict[str, Any]) -> tuple[bool | None, dict[str, str]]:
    a, b = write_model(tmp_path / "a", **first), write_model(tmp_path / "b", **second)
    found = inspect_models([str(a), str(b)])
    return found.compatible, {d.field: d.meaning for d in found.differences}


@pytest.mark.parametrize(
    ("second", "compatible", "differences"),
    [
        ({}, True, {}),
        ({"architecture": "MistralForCausalLM"}, False, {"architecture": "fatal"}),
        ({"hidden": 16}, False, {"hidden": "fatal"}),
        ({"intermediate": 32}, False, {"intermediate": "fatal"}),
        ({"layers": 3}, False, {"layers": "fatal"}),
        ({"heads": 4, "kv_heads": 4}, False, {"heads": "fatal", "kv_heads": "fatal"}),
        ({"vocabulary": 20}, True, {"vocabulary": "needs_tokenizer_block"}),
        ({"tied": True}, True, {"tied_embeddings": "caution"}),
        ({"dtype": "F32"}, True, {"dtype": "harmless"}),
        ({"rope_theta": 500000.0}, True, {"rope_theta": "caution"}),
        ({"hidden_act": "gelu"}, True, {"hidden_act": "caution"}),
        ({"drop": ("model.layers.1.mlp.up_proj.weight",)}, False, {"tensors": "fatal"}),
        ({"add": {"model.extra.weight": [4]}}, False, {"tensors": "fatal"}),
    ],
    ids=str,
)
def test_a_difference_has_one_meaning(
    tmp_path: Path, second: dict[str, Any], compatible: bool | None, differences: dict[str, str]
) -> None:
    found, meanings = pair(tmp_path, {}, second)
    if "hidden" in second or "intermediate" in second or "heads" in second:
        meanings.pop("tensors", None)  # follows from the field that is named
    assert (found, meanings) == (compatible, differences)


def test_other_tokens_under_the_same_ids_need_a_tokenizer_block(tmp_path: Path) -> None:
    assert pair(tmp_path, {"tokens": TOKENS}, {"tokens": [*TOKENS[:-1], "other"]}) == (
        True,
        {"tokenizer": "needs_tokenizer_block"},
    )


def test_a_tokenizer_file_that_differs_only_in_form_is_harmless(tmp_path: Path) -> None:
    a, b = write_model(tmp_path / "a", tokens=TOKENS), write_model(tmp_path / "b")
    write_tokenizer(b, TOKENS, padding={"strategy": "longest"})
    found = inspect_models([str(a), str(b)])
    assert [(d.field, d.meaning) for d in found.differences] == [("tokenizer", "harmless")]


def test_two_adapters_of_one_base_are_compatible(tmp_path: Path) -> None:
    base = write_model(tmp_path / "base")
    adapters = [write_lora(tmp_path / name, str(base), rank=rank) for name, rank in (("persona", 2), ("tools", 4))]
    found = inspect_models([str(a) for a in adapters], base=str(base))
    assert (found.compatible, found.differences) == (True, [])
    assert [s.kind for s in found.sources] == ["full", "lora", "lora"]
    assert {s.architecture for s in found.sources} == {"LlamaForCausalLM"}


def test_adapters_whose_base_is_not_here_are_undecided(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "empty"))
    adapters = [write_lora(tmp_path / name, "org/base") for name in ("a", "b")]
    assert inspect_models([str(a) for a in adapters]).compatible is None


def test_an_adapter_of_another_shape_is_fatal(tmp_path: Path) -> None:
    base, adapter = write_model(tmp_path / "base"), write_lora(tmp_path / "a", "other", hidden=16)
    found = inspect_models([str(adapter)], base=str(base))
    assert (found.compatible, [(d.field, d.meaning) for d in found.differences]) == (
        False,
        [("adapter_shape", "fatal"), ("adapter_base", "caution")],
    )


def test_adapters_of_two_bases_are_pointed_out(tmp_path: Path) -> None:
    base = write_model(tmp_path / "base")
    adapters = [write_lora(tmp_path / name, of) for name, of in (("a", "org/llama-3"), ("b", "org/llama-2"))]
    found = inspect_models([str(a) for a in adapters], base=str(base))
    assert (found.compatible, [(d.field, d.meaning) for d in found.differences]) == (None, [("adapter_base", "caution")])


def test_what_is_no_model_makes_the_whole_incompatible(tmp_path: Path) -> None:
    (tmp_path / "nothing").mkdir()
    assert inspect_models([str(write_model(tmp_path / "a")), str(tmp_path / "nothing")]).compatible is False


def card(licence: str) -> str:
    return f"---\nlicense: {licence}\n---\n"


@pytest.mark.parametrize(
    ("a", "b", "says"),
    [
        ("apache-2.0", "mit", []),
        ("gpl-3.0", "llama3", ["conflict: gpl-3.0"]),
        ("cc-by-nc-4.0", "apache-2.0", ["not for commercial use"]),
        ("gpl-3.0", "cc-by-sa-4.0", ["each want the merge"]),
    ],
)
def test_licence_conflicts_are_named(tmp_path: Path, a: str, b: str, says: list[str]) -> None:
    models = [write_model(tmp_path / name, card=card(licence)) for name, licence in (("a", a), ("b", b))]
    notes = inspect_models([str(m) for m in models]).licences
    assert all(any(text in note for note in notes) for text in says), notes
    assert any(note.startswith("conflict") for note in notes) is any("conflict" in s or "each want" in s for s in says)


def test_an_unknown_licence_stays_unknown(tmp_path: Path) -> None:
    notes = inspect_models([str(write_model(tmp_path / "a"))]).licences
    assert notes == [f"no licence was found for {tmp_path / 'a'}: ask the author before sharing the merge"]
