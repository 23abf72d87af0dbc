"""Merges that mergekit and PEFT wrote, and damage to them: a sample here, all of them slowly."""

from __future__ import annotations

import pytest

pytest.importorskip("peft")

from benchmarks.damage import elsewhere
from benchmarks.damage.elsewhere import MAKERS, RIGHT, Elsewhere, Elsewheres
from benchmarks.damage.kinds import KINDS

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


@pytest.mark.slow
def test_every_kind_of_damage_to_every_merge_from_elsewhere(bench: Elsewheres) -> None:
    rows = [bench.judge(kind, maker) for kind, maker in elsewhere.applicable()]
    assert [row for row in rows if elsewhere.is_wrong(row)] == []
    assert len({row.kind for row in rows}) > 40
