"""Kinds of damage and right merges on several arrangements of models: a sample of them here, all of them slowly."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.damage import kinds, right
from benchmarks.damage.families import FAMILIES, Family
from benchmarks.damage.judge import Bench, Judged
from benchmarks.damage.kinds import Kind

EVERY = {f"{kind.name}, {family.name}": (kind, family) for kind, family in kinds.applicable()}
LEAST_BY_SAMPLE = 0.9


def quick() -> Iterator[tuple[Kind, Family]]:
    """Each arrangement in turn gets the next kind that fits it, until each has had two."""
    left = list(kinds.KINDS)
    for family in list(FAMILIES.values()) * 2:
        kind = next((kind for kind in left if kind.fits(family)), None)
        if kind is not None:
            left.remove(kind)
            yield kind, family


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("bench"))


def test_there_are_enough_kinds_and_each_fits_some_arrangement() -> None:
    assert len(kinds.KINDS) == len({kind.name for kind in kinds.KINDS}) >= 40
    assert {kind.name for kind, _ in EVERY.values()} == {kind.name for kind in kinds.KINDS}


def test_one_kind_of_damage_after_the_other_is_found_and_named(bench: Bench) -> None:
    rows = [bench.judge(kind, family) for kind, family in quick()]
    assert [row for row in rows if not (row.full and row.named and row.record)] == []


@pytest.mark.slow
def test_every_kind_is_found_in_full_and_most_by_the_sample(bench: Bench) -> None:
    rows: list[Judged] = [bench.judge(kind, family) for kind, family in EVERY.values()]
    assert [row for row in rows if not (row.full and row.named and row.record)] == []
    missed = {row.kind for row in rows if not row.sample}
    assert len(missed) <= (1 - LEAST_BY_SAMPLE) * len(kinds.KINDS)


@pytest.mark.parametrize(("method", "dtype"), [("karcher", "bfloat16"), ("arcee_fusion", "float32"), ("della", "float16")])
def test_a_right_merge_is_verified(bench: Bench, tmp_path: Path, method: str, dtype: str) -> None:
    family = FAMILIES["GPT-2, Conv1D"]
    verdict = right.judge(tmp_path, bench.models(family), family, method, dtype)
    assert verdict is not None
    assert (verdict.with_record, verdict.alone) == ("verified", "verified")


@pytest.mark.slow
def test_no_right_merge_is_called_failed_and_nearly_all_are_verified(bench: Bench, tmp_path: Path) -> None:
    every = (right.judge(tmp_path, bench.models(f), f, method, dtype) for f, method, dtype in right.applicable())
    rows = [row for row in every if row is not None]
    assert [row for row in rows if "failed" in (row.with_record, row.alone)] == []
    assert sum(row.with_record == "verified" for row in rows) >= 0.95 * len(rows)
