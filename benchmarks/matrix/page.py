#!/usr/bin/env python3
"""Write docs/support.md from the rows of every matrix.

usage: page.py MERGES ADAPTERS ADAPTER_FORMS CHECKPOINT_FORMS PACKED_FORMS PAGE
"""

from __future__ import annotations

import json
import sys
from collections import Counter, defaultdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

Row = dict[str, Any]
FORMS = ("float32", "bfloat16, shards")
MERGEKIT = "mergekit"
KINDS = {
    "default": "LoRA on the modules that PEFT chooses, rank-stabilised, with rank and alpha patterns and all biases",
    "all-linear": "LoRA on every linear layer",
    "experts": "LoRA on stacks of experts (target_parameters)",
    "embeddings": "LoRA on embedding and head",
    "saved": "LoRA, and head or embedding saved whole (modules_to_save)",
    "dora": "DoRA on every linear layer",
    "conv": "LoRA on convolutions",
    "ia3": "IA³",
    "two": "two LoRAs into one model (task_arithmetic, 0.5 and 0.3)",
}
COLUMNS = (*FORMS, MERGEKIT, *KINDS)


def main() -> int:
    merges, adapters, *forms, packed, page = map(Path, sys.argv[1:7])
    page.write_text(text(read(merges), read(adapters), [read(file) for file in forms], read(packed)), encoding="utf-8")
    return 0


def read(file: Path) -> list[Row]:
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()]


def text(merges: list[Row], adapters: list[Row], forms: list[list[Row]], packed: list[Row]) -> str:
    tried = [row for row in merges if row["result"] != "skipped" and row["form"] != MERGEKIT]
    theirs = [row for row in merges if row["form"] == MERGEKIT]
    made = [row for row in adapters if row["result"] != "none"]
    counts, right = Counter(row["result"] for row in tried), Counter(row["result"] for row in made)
    left_out = sorted({row["type"] for row in merges} - {row["type"] for row in tried})
    lines = [
        "# Architectures that were tried",
        "",
        "Written by `make matrix` (benchmarks/matrix): tiny random models of every class of transformers "
        f"{version('transformers')} that can be made tiny, adapters of PEFT {version('peft')}.",
        "",
        "## Two fine-tunes",
        "",
        "Two fine-tunes of each class are merged by the streaming engine. Each output tensor is held against float64 task",
        "arithmetic on the stored tensors, and transformers must report of the output what it reports of the base. `right`: both",
        "hold. `refused`: by validate and merge alike, with the reason. Others are merged in the same way, by tensor name.",
        "",
        f"{len({row['type'] for row in tried})} architectures, {len(tried)} merges: {listed(counts)}.",
        "",
        f"mergekit {version('mergekit')} was given the same float32 folders and recipe: {len(theirs)} merges:",
        f"{listed(Counter(row['result'] for row in theirs))}. `drops`: the run ends as a success, and transformers",
        "misses tensors when it loads the output. `wrong`: values differ, or nothing loads. `fails`: it stops with an error.",
        "",
        "## Adapters",
        "",
        "PEFT makes the adapter, runs it and merges it; the streaming engine merges base+adapter from the files alone.",
        "",
        "- `right`: every stored tensor is PEFT's, and the outputs are those of PEFT running.",
        "- `runs`: PEFT itself differs where a LoRA changes a tied embedding or head: its merge changes both, PEFT running",
        "  one. The outputs are those of PEFT running, the result says so, and `adapter_keeps_ties: true` gives PEFT's merge.",
        "- `merges`: PEFT's merge, of modules whose weights the class reads without running the module.",
        "- empty: the class has nothing of the kind, or PEFT does not make it.",
        "",
        f"{len({row['type'] for row in made})} architectures, {len(made)} adapters: {listed(right)}.",
        "",
        "| kind | | tried | right | runs | merges | refused | wrong |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for kind, what in KINDS.items():
        own = Counter(row["result"] for row in made if row["kind"] == kind)
        wrong = sum(own[name] for name in ("wrong", "misled", "broke"))
        cells = [own["right"], own["runs"], own["merges"], own["refused"], wrong]
        lines.append(f"| {kind} | {what} | {sum(own.values())} | " + " | ".join(map(str, cells)) + " |")
    lines += ["", *refusals(made), "", *forms_tried(*forms), "", *packed_weights(packed), "", "## Every architecture", ""]
    lines += ["| model type | class | " + " | ".join(COLUMNS) + " |", "|---|---|" + "---|" * len(COLUMNS)]
    table: dict[str, dict[str, Row]] = defaultdict(dict)
    for row in (*tried, *theirs):
        table[row["type"]][row["form"]] = row
    for row in made:
        table[row["type"]][row["kind"]] = row
    for name in sorted(table):
        cells = [table[name][column]["result"] if column in table[name] else "" for column in COLUMNS]
        lines.append(f"| {name} | {next(iter(table[name].values()))['class']} | " + " | ".join(cells) + " |")
    lines += ["", f"Not made tiny from their default configurations, so not tried ({len(left_out)}): {', '.join(left_out)}.", ""]
    return "\n".join(lines)


def forms_tried(adapters: list[Row], checkpoints: list[Row]) -> list[str]:
    """The counts of both lists, and each form that is refused with its reason."""
    lines = [
        "## Forms",
        "",
        "Each kind and option of PEFT, layouts of other versions and tools, shards, dtypes, wrappers, and damaged files.",
        "What PEFT or transformers loads must be merged as they have it; what has to be refused, by its true reason.",
        "",
    ]
    for what, rows in (("adapter", adapters), ("checkpoint", checkpoints)):
        lines += [f"- {len(rows)} forms of {what}s: {listed(Counter(row['result'] for row in rows))}."]
    lines += [
        "- Slices are run beside transformers with its layers in that order (tests/engine/test_slices_in_transformers.py),",
        "  recipes in unusual spellings beside mergekit (tests/engine/test_unusual_recipes.py).",
    ]
    for what, rows in (("adapter", adapters), ("checkpoint", checkpoints)):
        lines += ["", f"| form of the {what} | | |", "|---|---|---|"]
        lines += [f"| {row['form']} | {row['result']} | {row['says'].replace('|', '/')[:160]} |" for row in rows]
    return lines


def packed_weights(rows: list[Row]) -> list[str]:
    """A line for each form, with what it gave as base, as source and under an adapter."""
    table: dict[str, dict[str, Row]] = defaultdict(dict)
    for row in rows:
        table[row["packed"]][row["use"]] = row
    lines = [
        "## Packed weights",
        "",
        "Each form is packed and unpacked by the library that owns it, and merged with plain weights and an adapter: the output",
        "is held against float64 task arithmetic on what the library unpacks, and verify recomputes it. How each is told and",
        "read, and what is refused by name: [packed.md](packed.md).",
        "",
        f"{len(table)} forms, {len(rows)} merges: {listed(Counter(row['result'] for row in rows))}.",
        "",
        "| form | read as | as the base | as a source | under an adapter |",
        "|---|---|---|---|---|",
    ]
    for form, uses in table.items():
        cells = [uses[use]["result"] if use in uses else "" for use in ("base", "source", "adapter")]
        lines.append(f"| {form} | {next(iter(uses.values()))['kind']} | " + " | ".join(cells) + " |")
    return lines


def listed(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {result}" for result, count in counts.most_common())


def refusals(made: list[Row]) -> list[str]:
    """One line for each architecture with a refusal: its kinds, and the first reason."""
    found: dict[str, list[Row]] = defaultdict(list)
    for row in made:
        if row["result"] not in ("right", "runs", "merges"):
            found[row["type"]].append(row)
    if not found:
        return []
    lines = ["What was not merged:", ""]
    for name in sorted(found):
        kinds = ", ".join(f"{row['kind']} {row['result']}" for row in found[name])
        lines.append(f"- {name} ({kinds}): {found[name][0]['says'].replace('|', '/')}")
    return lines


if __name__ == "__main__":
    sys.exit(main())
