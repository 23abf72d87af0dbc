"""Adapters and checkpoints in the forms in which they are stored, beside PEFT and transformers: a sample, and slowly all."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("peft")

from benchmarks.matrix import adapter_forms, checkpoint_forms
from benchmarks.matrix.adapters import recipe_of, trained
from benchmarks.matrix.forms import LOADS, SAME
from mcp_server.engine.merge import merge
from mcp_server.engine.request import Request
from mcp_server.steps.verify import verify

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore")
QUICK = {
    "GPT-2, embedding alone, base without prefix",
    "both patterns, rank-stabilised",
    "embedding, tied",
    "experts beside modules",
    "saved head with the original beside it",
    "kohya",
    "MLX",
    "no config",
    "no kind in the config",
    "sharded to nothing",
    "a whole file beside shards",
    "consolidated file alone",
    "folder in a folder",
    "index that lacks a tensor",
    "pointer of Git LFS",
    "two wrappers",
}
EVERY = 5
"""Besides them, one form in so many."""
PAGE = Path(__file__).parents[2] / "docs" / "support.md"


def sample(forms: dict[str, Any]) -> list[Any]:
    quick = QUICK | set(list(forms)[::EVERY])
    return [name if name in quick else pytest.param(name, marks=pytest.mark.slow) for name in forms]


@pytest.mark.parametrize("name", sample(adapter_forms.FORMS))
def test_an_adapter_in_this_form_is_merged_as_peft_does_or_refused_by_its_reason(name: str) -> None:
    row = adapter_forms.row_of(name)
    merged = adapter_forms.FORMS[name].expect in (LOADS, SAME)
    assert row["result"] in (("right", "runs") if merged else ("refused",)), row


@pytest.mark.parametrize("name", sample(checkpoint_forms.FORMS))
def test_a_checkpoint_in_this_form_is_merged_as_it_loads_or_refused_by_its_reason(name: str) -> None:
    row = checkpoint_forms.row_of(name)
    merged = checkpoint_forms.FORMS[name].expect in (LOADS, SAME)
    assert row["result"] == ("right" if merged else "refused"), row


@pytest.mark.parametrize("name", ["GPT-2, embedding alone, base without prefix", "saved head with the original beside it"])
def test_verify_knows_the_merge_of_an_adapter_in_this_form(name: str, tmp_path: Path) -> None:
    form = adapter_forms.FORMS[name]
    model = adapter_forms.made(form.base)
    adapter_forms.store(model, tmp_path / "base", bare=form.base.endswith("-bare"))
    made = trained(copy.deepcopy(model), lambda _: getattr(peft, form.kind)(**form.settings), 0)
    made.save_pretrained(tmp_path / "one")
    if form.edit:
        form.edit(tmp_path / "one")
    recipe = recipe_of(tmp_path / "base", [tmp_path / "one"])
    merge(Request(recipe, tmp_path / "out", tmp_path / "journal", threads=1), lambda *_: None)
    assert [check for check in verify(tmp_path / "out", full=True).checks if check.passed is not True] == []


def test_every_form_is_counted_in_the_docs() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for what, forms in (("adapter", adapter_forms.FORMS), ("checkpoint", checkpoint_forms.FORMS)):
        assert f"{len(forms)} forms of {what}s" in text, json.dumps({what: len(forms)})
