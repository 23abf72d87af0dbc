#!/usr/bin/env python3
"""Damage merges in every way that is known here, make right ones of every kind, and write down what verify says of them.

usage: run.py [--parts PART...] [--rows FILE] [PAGE]

PAGE (such as docs/damage.md) gets the tables. `--rows` keeps results as JSON lines, and a second run with the same file goes on;
runs of different parts may share it. A kind of damage that is not found in full, or a right merge that is called failed, makes
the exit code 1.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

if __name__ == "__main__":  # before transformers is imported; not where a test imports this
    os.environ.update(HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false")
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.damage import elsewhere, kinds, peft_merges, right
from benchmarks.damage.elsewhere import Elsewhere
from benchmarks.damage.families import FAMILIES
from benchmarks.damage.judge import Bench, Judged
from benchmarks.damage.peft_merges import Seen
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

The methods on the arrangements, written as float32, bfloat16 and float16 by the streaming engine, {merges} merges: with the
record {verified} verified, {failed} called failed; by the recipe alone {alone} verified, {alone_failed} called failed.

| method | merges | verified with the record | verified by the recipe alone | called failed |
|---|---|---|---|---|
"""


ADAPTERS = """
## Adapters

PEFT makes adapters of {kinds} kinds on tiny models of {types} classes. Its own merge (merge_and_unload), given as base and
adapter without a recipe: {theirs} merges, {theirs_verified} verified, {theirs_failed} called failed. The engine's: {ours} merges,
{ours_verified} verified, {ours_failed} called failed.

| class | adapters | PEFT's verified | ours verified | called failed | not decided |
|---|---|---|---|---|---|
"""
Row = Judged | Verdict | Seen | Elsewhere
PARTS: dict[str, type[Row]] = {"damage": Judged, "elsewhere": Elsewhere, "right": Verdict, "adapters": Seen}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="*", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--rows", type=Path)
    parser.add_argument("page", nargs="?", type=Path)
    args = parser.parse_args()
    started, rows = time.monotonic(), read_rows(args.rows)
    with tempfile.TemporaryDirectory(prefix="damage-") as folder:
        for row in new_rows(Path(folder), args.parts, {identity(row) for row in rows}):
            rows.append(row)
            if is_wrong(row):
                print(row, flush=True)
            if args.rows:
                part = next(name for name, kind in PARTS.items() if isinstance(row, kind))
                with args.rows.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({"part": part} | asdict(row)) + "\n")
    print(f"{len(rows)} merges in {time.monotonic() - started:.0f} s")
    if args.page:
        args.page.write_text(page(rows), encoding="utf-8")
    return int(any(map(is_wrong, rows)))


def read_rows(file: Path | None) -> list[Row]:
    lines = file.read_text("utf-8").splitlines() if file and file.exists() else []
    rows: list[Row] = [PARTS[held.pop("part")](**held) for held in map(json.loads, lines)]
    return list({identity(row): row for row in rows}.values())


def identity(row: Row) -> tuple[str, ...]:
    if isinstance(row, Judged):
        return row.kind, row.family
    if isinstance(row, Elsewhere):
        return row.kind, row.maker
    return (row.family, row.method, row.dtype) if isinstance(row, Verdict) else (row.type, row.kind)


def is_wrong(row: Row) -> bool:
    if isinstance(row, Judged):
        return not (row.full and row.named)
    if isinstance(row, Elsewhere):
        return elsewhere.is_wrong(row)
    return "failed" in ((row.with_record, row.alone) if isinstance(row, Verdict) else (row.theirs, row.ours))


def new_rows(folder: Path, parts: Sequence[str], known: set[tuple[str, ...]]) -> Iterator[Row]:
    bench = Bench(folder)
    for kind, family in kinds.applicable() if "damage" in parts else ():
        if (kind.name, family.name) not in known:
            yield bench.judge(kind, family)
    others = elsewhere.Elsewheres(folder)
    for given, maker in elsewhere.applicable() if "elsewhere" in parts else ():
        if (given.name if given else elsewhere.RIGHT, maker.name) not in known:
            yield others.judge(given, maker)
    for family, method, dtype in right.applicable() if "right" in parts else ():
        if (family.name, method, dtype) not in known and (
            verdict := right.judge(folder, bench.models(family), family, method, dtype)
        ):
            yield verdict
    if "adapters" in parts:
        left = tuple(t for t in peft_merges.TYPES if not any(key[0] == t for key in known))
        yield from peft_merges.all_of(folder, left)


def page(rows: Sequence[Row]) -> str:
    judged = [row for row in rows if isinstance(row, Judged)]
    verdicts = [row for row in rows if isinstance(row, Verdict)]
    made = [row for row in rows if isinstance(row, Elsewhere)]
    return damage(judged) + elsewhere.page(made) + rights(verdicts) + adapters([row for row in rows if isinstance(row, Seen)])


def damage(judged: Sequence[Judged]) -> str:
    by_kind: dict[str, list[Judged]] = defaultdict(list)
    places = {kind.name: place for place, kind in enumerate(kinds.KINDS)}
    for row in sorted(judged, key=lambda row: places[row.kind]):
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
    return text


def rights(verdicts: Sequence[Verdict]) -> str:
    with_record, alone = (Counter(getattr(row, how) for row in verdicts) for how in ("with_record", "alone"))
    text = RIGHT.format(
        merges=len(verdicts), verified=with_record["verified"], failed=with_record["failed"], alone=alone["verified"],
        alone_failed=alone["failed"],
    )  # fmt: skip
    for method in right.METHODS:
        rows_ = [row for row in verdicts if row.method == method]
        kept, given = (sum(getattr(row, how) == "verified" for row in rows_) for how in ("with_record", "alone"))
        bad = sum("failed" in (row.with_record, row.alone) for row in rows_)
        text += f"| {method} | {len(rows_)} | {kept} | {given} | {bad} |\n"
    return text


def adapters(seen: Sequence[Seen]) -> str:
    theirs, ours = (Counter(getattr(row, how) for row in seen if getattr(row, how)) for how in ("theirs", "ours"))
    types = dict.fromkeys(row.type for row in seen)
    text = ADAPTERS.format(
        kinds=len({row.kind for row in seen}), types=len(types), theirs=theirs.total(), theirs_verified=theirs["verified"],
        theirs_failed=theirs["failed"], ours=ours.total(), ours_verified=ours["verified"], ours_failed=ours["failed"],
    )  # fmt: skip
    for kind in types:
        rows = [row for row in seen if row.type == kind]
        cells = [len(rows), *(sum(getattr(row, how) == "verified" for row in rows) for how in ("theirs", "ours"))]
        failed = sum("failed" in (row.theirs, row.ours) for row in rows)
        open_ = [row.kind for row in rows if "inconclusive" in (row.theirs, row.ours)]
        text += f"| {kind} | {' | '.join(map(str, cells))} | {failed} | {', '.join(open_)} |\n"
    return text


if __name__ == "__main__":
    sys.exit(main())
