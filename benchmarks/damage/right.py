"""Right merges of every method, arrangement and dtype, and what verify says of each: with its record, and by its recipe alone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.damage.families import FAMILIES, Family
from benchmarks.damage.judge import without_record
from mcp_server.errors import MergingError
from mcp_server.steps.verify import verify

METHODS: dict[str, dict[str, Any]] = {
    "linear": {}, "task_arithmetic": {"lambda": 0.8}, "ties": {"density": 0.5}, "dare_linear": {"density": 0.6},
    "dare_ties": {"density": 0.6}, "breadcrumbs": {"density": 0.7, "gamma": 0.02}, "breadcrumbs_ties": {"density": 0.7},
    "della": {"density": 0.6, "epsilon": 0.1}, "della_linear": {"density": 0.6, "epsilon": 0.1}, "slerp": {"t": 0.4},
    "nuslerp": {}, "multislerp": {}, "karcher": {}, "model_stock": {}, "sce": {"select_topk": 0.6}, "nearswap": {"t": 0.05},
    "ram": {"epsilon": 0.1}, "ramplus_tl": {"epsilon": 0.1}, "arcee_fusion": {},
}  # fmt: skip
DTYPES = ("float32", "bfloat16", "float16")
SOURCES = {"slerp": ("one",), "nearswap": ("one",), "arcee_fusion": ("one",)}


@dataclass(frozen=True)
class Verdict:
    """`with_record` and `alone` (by the recipe): verified, failed, inconclusive or unreadable."""

    family: str
    method: str
    dtype: str
    with_record: str
    alone: str
    said: str


def applicable() -> Iterator[tuple[Family, str, str]]:
    """(arrangement, method, dtype of the output)."""
    for family in FAMILIES.values():
        for method in METHODS if not family.adapter else ("linear", "task_arithmetic"):
            for dtype in DTYPES:
                yield family, method, dtype


def judge(folder: Path, models: Path, family: Family, method: str, dtype: str) -> Verdict | None:
    """None where the engine refuses the method on this arrangement."""
    made = replace(family, dtype=dtype)
    recipe = made.recipe(models, method, sources=SOURCES.get(method, ("one", "two")), **METHODS[method])
    out = folder / "right"
    try:
        made.merge(out, recipe)
    except MergingError:
        return None
    kept = verify(out, full=True)
    without_record(out)
    alone = verify(out, full=True, recipe=recipe)
    for path in folder.glob("right*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    said = [check.model_dump() for found in (kept, alone) for check in found.checks if check.passed is not True]
    return Verdict(family.name, method, dtype, kept.verdict, alone.verdict, json.dumps(said))
