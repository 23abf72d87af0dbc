#!/usr/bin/env python3
"""Run published recipes with mergekit and with the streaming engine, and as `validate --fix` corrects them; compare all weights.

usage: run.py [--only TEXT] [PAGE]

PAGE (docs/recipes.md) gets the table, and made.json the numbers by which the quick tests know mergekit's weights. A difference
that the data does not explain makes the exit code 1.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import os
import sys
import tempfile
import time
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

if __name__ == "__main__":  # before transformers is imported; not where a test imports this
    os.environ.update(HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false", TQDM_DISABLE="1")
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
import yaml
from mergekit.config import MergeConfiguration
from mergekit.merge import MergeOptions, run_merge

from benchmarks.recipes.cases import Published, Weights, difference, known_by, ours, over, published, read
from benchmarks.recipes.models import write_models
from mcp_server.steps.validate import fix

MADE = Path(__file__).parent / "made.json"
EVERY = 15
"""One recipe in so many is kept for the quick tests."""
PAGE = """# Published recipes

Written by `make recipes` (benchmarks/recipes): {count} recipes in the forms that model cards, posts and notebooks publish, each
run with mergekit 0.1.5 and with the streaming engine on tiny models of eight layers, and once more as `validate --fix` corrects
it. All values are compared, in float32. Methods that draw a mask at random are compared with a density of 1.

{same} have mergekit's weights, {both} are refused by both, {only} by the engine alone, with the reasons below. `--fix` corrected
{fixed}: {unchanged} of the {taken} that mergekit takes keep their weights, {meant} changes on purpose.
"""


@dataclass(frozen=True)
class Row:
    case: Published
    theirs: Weights | str
    mine: Weights | str
    changed: str | None
    """How the corrected recipe differs in mergekit; None where nothing was corrected or mergekit takes only one of them."""
    fixed: bool

    @property
    def outcome(self) -> str:
        if isinstance(self.mine, str):
            return "refused by both" if isinstance(self.theirs, str) else "refused by the engine"
        if isinstance(self.theirs, str):
            return "refused by mergekit"
        return difference(self.mine, self.theirs) or "same"

    @property
    def wrong(self) -> str:
        """What the data does not explain."""
        if isinstance(self.mine, str):
            if not self.case.ours or self.case.ours not in self.mine:
                return f"refused: {self.mine}; mergekit: {self.theirs if isinstance(self.theirs, str) else 'takes it'}"
        elif self.case.ours:
            return f"not refused with {self.case.ours!r}"
        elif isinstance(self.theirs, str) and not self.case.theirs:
            return f"mergekit refuses: {self.theirs}"
        elif self.outcome != "same":
            return self.outcome
        if bool(self.changed) is not bool(self.case.fix):
            return f"--fix changes weights: {self.changed}" if self.changed else f"--fix changes nothing, though {self.case.fix}"
        return ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="recipes whose name holds this text")
    parser.add_argument("page", nargs="?", type=Path)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    torch.set_num_threads(1)
    started, rows = time.monotonic(), []
    with tempfile.TemporaryDirectory(prefix="recipes-") as name:
        models = write_models(Path(name) / "models")
        for number, case in enumerate(case for case in published() if args.only in case.name):
            row = judge(case, models, Path(name) / str(number))
            rows.append(row)
            if row.wrong:
                print(f"{case.name}: {row.wrong}", flush=True)
    print(f"{len(rows)} recipes in {time.monotonic() - started:.0f} s: {dict(Counter(row.outcome for row in rows))}")
    if args.page:
        args.page.write_text(page(rows), encoding="utf-8")
        made = {row.case.name: row.theirs for row in rows if row.outcome == "same"}
        kept = {name: known_by(made[name]) for name in sorted(made)[::EVERY]}  # type: ignore[arg-type]
        MADE.write_text(json.dumps(kept, indent=0) + "\n", encoding="utf-8")
    return int(any(row.wrong for row in rows))


def judge(case: Published, models: dict[str, str], folder: Path) -> Row:
    folder.mkdir()
    text = over(case, models)
    first, mine = theirs(text, folder / "theirs"), ours(text, folder / "ours")
    if isinstance(mine, str):
        mine = mine.replace(f"{Path(models['A']).parent}/", "")
    corrected = fix(text).fixed_recipe
    changed = None
    if corrected is not None and not isinstance(first, str):
        again = theirs(corrected, folder / "corrected")
        changed = f"mergekit refuses it: {again}" if isinstance(again, str) else difference(first, again)
    return Row(case, first, mine, changed, corrected is not None)


def theirs(text: str, folder: Path) -> Weights | str:
    options = MergeOptions(quiet=True, write_model_card=False, lora_merge_cache=str(folder.with_suffix(".lora")), random_seed=1)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            run_merge(MergeConfiguration.model_validate(yaml.safe_load(text)), str(folder), options)
    except Exception as refusal:  # noqa: BLE001 - whatever it raises is its answer
        return f"{type(refusal).__name__}: {' '.join(str(refusal).split())[:200]}"
    return read(folder)


def page(rows: list[Row]) -> str:
    outcomes = Counter(row.outcome for row in rows)
    changed = [row for row in rows if row.changed is not None]
    text = PAGE.format(
        count=len(rows), same=outcomes["same"], both=outcomes["refused by both"], only=outcomes["refused by the engine"],
        fixed=sum(row.fixed for row in rows), taken=len(changed), unchanged=sum(not row.changed for row in changed),
        meant=sum(bool(row.changed and row.case.fix) for row in changed),
    )  # fmt: skip
    text += "\n## Refused by the engine alone\n\n| recipe | reason |\n|---|---|\n"
    text += "".join(f"| {r.case.name} | {r.mine} |\n" for r in rows if r.outcome == "refused by the engine")
    text += "\n## Changed on purpose\n\n| recipe | why |\n|---|---|\n"
    text += "".join(f"| {row.case.name} | {row.case.fix} |\n" for row in rows if row.changed)
    text += "\n## All\n\n| recipe | outcome |\n|---|---|\n"
    return text + "".join(f"| {row.case.name} | {row.outcome} |\n" for row in rows)


if __name__ == "__main__":
    sys.exit(main())
