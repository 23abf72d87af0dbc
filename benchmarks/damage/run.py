#!/usr/bin/env python3
"""Damage merges in every way that is known here, make right ones of every kind, and write down what verify says of them.

usage: run.py [--only WORD...] [PAGE]

PAGE (such as docs/damage.md) gets the tables. A kind of damage that is not found in full, or a right merge that is called failed,
makes the exit code 1.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.damage import kinds, right
from benchmarks.damage.families import FAMILIES
from benchmarks.damage.judge import Bench, Judged
from benchmarks.damage.right import Verdict

INTRODUCTION = """# What verify finds, and what it leaves alone

Written by `make damage` (benchmarks/damage): small models of {families} arrangements ({names}), written with numpy.

## Damage

Each kind is done to a right merge of every arrangement that has what it is about, {cases} cases in all. Three questions: is it
found by the recipe alone (no record of the merge, as for anybody's), every value read; by the recipe alone from a sample of three
or six rows of each matrix; by the sample when the record is there, whose digests tell any change. `named`: the tensor or file is
named, with what is wrong of it. Kinds marked * are told by the record's seed alone, so that seed is given.

{found} of {kinds} kinds are found in full, {sampled} of {kinds} by the sample, {recorded} with the record; {named} of {cases}
cases are named in words.
"""
RIGHT = """
## Right merges

Every method on every arrangement, written as float32, bfloat16 and float16 by the streaming engine, {merges} merges: with the
record {verified} verified, {failed} called failed; by the recipe alone {alone} verified, {alone_failed} called failed.

| method | merges | verified with the record | verified by the recipe alone | called failed |
|---|---|---|---|---|
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", metavar="WORD", default=[""], help="kinds and methods that hold one of these words")
    parser.add_argument("page", nargs="?", type=Path)
    args = parser.parse_args()
    started = time.monotonic()
    judged, verdicts = [], []
    with tempfile.TemporaryDirectory(prefix="damage-") as folder:
        bench = Bench(Path(folder))
        for kind, family in kinds.applicable():
            if any(word in kind.name for word in args.only):
                judged.append(bench.judge(kind, family))
                _print_misses(judged[-1])
        for family, method, dtype in right.applicable():
            if any(word in method for word in args.only):
                verdicts.append(right.judge(Path(folder), bench.models(family), family, method, dtype))
                if (verdicts[-1].with_record, verdicts[-1].alone) != ("verified", "verified"):
                    print(verdicts[-1])
    print(f"{len(judged)} damaged, {len(verdicts)} right in {time.monotonic() - started:.0f} s")
    if args.page:
        args.page.write_text(page(judged, verdicts), encoding="utf-8")
    return int(not all(row.full for row in judged) or any("failed" in (row.with_record, row.alone) for row in verdicts))


def _print_misses(row: Judged) -> None:
    if not (row.full and row.named):
        print(row, flush=True)


def page(judged: Sequence[Judged], verdicts: Sequence[Verdict]) -> str:
    by_kind: dict[str, list[Judged]] = defaultdict(list)
    for row in judged:
        by_kind[row.kind].append(row)
    whole = {kind: [all(getattr(r, how) for r in rows) for how in ("full", "sample", "record")] for kind, rows in by_kind.items()}
    counts = [sum(found[i] for found in whole.values()) for i in range(3)]
    text = INTRODUCTION.format(
        families=len(FAMILIES), names="; ".join(FAMILIES), cases=len(judged), kinds=len(by_kind), found=counts[0],
        sampled=counts[1], recorded=counts[2], named=sum(row.named for row in judged),
    )  # fmt: skip
    text += "\n| damage | cases | in full | sample | with the record | named |\n|---|---|---|---|---|---|\n"
    seeded = {kind.name for kind in kinds.KINDS if kind.seeded}
    for kind, rows in by_kind.items():
        cells = [sum(getattr(row, how) for row in rows) for how in ("full", "sample", "record", "named")]
        text += f"| {kind}{' *' if kind in seeded else ''} | {len(rows)} | {' | '.join(map(str, cells))} |\n"
    with_record, alone = (Counter(getattr(row, how) for row in verdicts) for how in ("with_record", "alone"))
    text += RIGHT.format(
        merges=len(verdicts), verified=with_record["verified"], failed=with_record["failed"], alone=alone["verified"],
        alone_failed=alone["failed"],
    )  # fmt: skip
    for method in right.METHODS:
        rows_ = [row for row in verdicts if row.method == method]
        kept, given = (sum(getattr(row, how) == "verified" for row in rows_) for how in ("with_record", "alone"))
        bad = sum("failed" in (row.with_record, row.alone) for row in rows_)
        text += f"| {method} | {len(rows_)} | {kept} | {given} | {bad} |\n"
    return text


if __name__ == "__main__":
    sys.exit(main())
