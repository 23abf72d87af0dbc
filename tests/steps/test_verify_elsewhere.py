"""Merges that mergekit and PEFT wrote, and damage to them: a sample here, all of them slowly."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

pytest.importorskip("peft")

from benchmarks.damage import elsewhere
from benchmarks.damage.elsewhere import MAKERS, RIGHT, Elsewhere, Elsewheres
from benchmarks.damage.kinds import KINDS
from benchmarks.matrix.adapters import KINDS as KINDS_OF_ADAPTERS
from benchmarks.matrix.adapters import trained
from benchmarks.matrix.tiny import tiny
from mcp_server.steps.verify import verify

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore")
SAMPLE = {
    "mergekit, linear": ("matrix left at the base", "a norm missing"),
    "mergekit, ties": ("square matrix transposed", "fused k and v swapped"),
    "mergekit, dare_ties without its seed": ("matrix of one source", "matrix negated"),
    "PEFT, one adapter": ("a module not folded", "alpha taken for the scale"),
}


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Elsewheres:
    return Elsewheres(tmp_path_factory.mktemp("elsewhere"))


@pytest.mark.parametrize("maker", SAMPLE)
def test_a_merge_from_elsewhere_is_verified_and_its_damage_found_and_named(maker: str, bench: Elsewheres) -> None:
    assert bench.judge(None, MAKERS[maker]) == Elsewhere(RIGHT, maker, False, False, False, "verified", "[]")
    by_name = {kind.name: kind for kind in KINDS}
    rows = [bench.judge(by_name[name], MAKERS[maker]) for name in SAMPLE[maker]]
    assert [(row.kind, row.said) for row in rows if not (row.full and row.named)] == []


@pytest.mark.parametrize(
    ("stored", "folded"), [("bfloat16", "bfloat16"), ("float16", "float16"), ("bfloat16", "float16"), ("float16", "bfloat16")]
)
@pytest.mark.parametrize(
    ("kind", "model_type", "name"), [("embeddings", "gpt2", "GPT2LMHeadModel"), ("ia3", "llama", "LlamaForCausalLM")]
)
def test_what_peft_folds_in_16_bits_is_verified_although_it_rounds_tied_weights_twice(
    kind: str, model_type: str, name: str, stored: str, folded: str, tmp_path: Path
) -> None:
    """LoRA of embedding and head is added to the one weight that both are, and rounded after each."""
    torch.manual_seed(3)
    model = tiny(model_type, name)
    assert model is not None
    model.to(getattr(torch, stored)).save_pretrained(tmp_path / "base")
    trained(type(model).from_pretrained(tmp_path / "base"), KINDS_OF_ADAPTERS[kind], 0).save_pretrained(tmp_path / "one")
    base = type(model).from_pretrained(tmp_path / "base", dtype=getattr(torch, folded))
    peft.PeftModel.from_pretrained(base, tmp_path / "one").merge_and_unload().save_pretrained(tmp_path / "out")
    found = verify(tmp_path / "out", full=True, base=str(tmp_path / "base"), sources=[str(tmp_path / "one")])
    assert [check for check in found.checks if check.passed is not True and check.name != "provenance"] == []


def test_two_adapters_that_peft_adds_in_16_bits_are_verified_by_their_recipe(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = tiny("gpt2", "GPT2LMHeadModel")
    assert model is not None
    model.to(torch.bfloat16).save_pretrained(tmp_path / "base")
    cls, names = type(model), ("one", "two")
    for seed, name in enumerate(names):
        base = cls.from_pretrained(tmp_path / "base", dtype=torch.bfloat16)
        trained(base, KINDS_OF_ADAPTERS["all-linear"], seed).save_pretrained(tmp_path / name)
    made = peft.PeftModel.from_pretrained(
        cls.from_pretrained(tmp_path / "base", dtype=torch.bfloat16), tmp_path / "one", adapter_name="one"
    )
    made.load_adapter(tmp_path / "two", adapter_name="two")
    made.add_weighted_adapter(list(names), [0.6, 0.4], "both", combination_type="cat")
    made.set_adapter("both")
    made.merge_and_unload().save_pretrained(tmp_path / "out")
    entries = [
        {"model": f"{tmp_path / 'base'}+{tmp_path / name}", "parameters": {"weight": weight}}
        for name, weight in zip(names, (0.6, 0.4), strict=True)
    ]
    recipe = {"merge_method": "task_arithmetic", "base_model": str(tmp_path / "base"), "models": entries}
    assert [check for check in verify(tmp_path / "out", full=True, recipe=json.dumps(recipe)).checks if not check.passed] == []


@pytest.mark.slow
def test_every_kind_of_damage_to_every_merge_from_elsewhere(bench: Elsewheres) -> None:
    rows = [bench.judge(kind, maker) for kind, maker in elsewhere.applicable()]
    assert [row for row in rows if elsewhere.is_wrong(row)] == []
    assert len({row.kind for row in rows}) > 40
